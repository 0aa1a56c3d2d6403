"""Reason: why not. Every refusal, wait and undo carries one, and `batuta why` prints nothing else.

`CATALOGUE` is the closed list of codes: what each means, what to do about it, and whether it is a wait (which is not an
error). The reference page of reasons is printed from it.
"""

from __future__ import annotations

from typing import NamedTuple

from batuta.kinds.base import Record


class Reason(Record):
    """Why something is not so: a code of the catalogue, what it is about, and the figures of this case."""

    code: str
    subject: str
    """What refused or waits: `node/pi-4`, `component/read`, `model/digits`."""
    detail: str = ""
    """The figures of this case: `96Mi free, 128Mi needed`."""

    def __str__(self) -> str:
        return f"{self.subject}: {CATALOGUE[self.code].sentence}" + (f" ({self.detail})" if self.detail else "")

    @property
    def is_waiting(self) -> bool:
        """True for what passes by itself: a wait is not an error."""
        return CATALOGUE[self.code].waits

    @property
    def next_step(self) -> str:
        """What to do next, with the names of this case where they are known: it can be pasted."""
        step = CATALOGUE[self.code].next_step
        match self.subject.split("/"):
            case ["instance", namespace, app, instance]:
                where = "" if namespace == "default" else f" -n {namespace}"
                return step.replace("`batuta logs`", f"`batuta logs {app} --instance {instance}{where}`")
            case ["node", node]:
                return step.replace("NAME", node)
            case ["application", app]:
                return step.replace(" APP`", f" {app}`")
            case _:
                return step


class Entry(NamedTuple):
    """What a code means, what to do next, and whether it passes by itself."""

    sentence: str
    next_step: str
    waits: bool = False


CATALOGUE: dict[str, Entry] = {
    # Placement: why a node was not chosen, in the order in which the filters ask.
    "node_offline": Entry("the node is not connected", "bring it back, or see `batuta describe node NAME`", waits=True),
    "node_unschedulable": Entry("the node takes no new instances", "set spec.unschedulable to false"),
    "node_held": Entry("the node is held as it is by its owner", "`batuta node release NAME`", waits=True),
    "node_unreported": Entry("the node has not yet said what it has", "wait for its first report", waits=True),
    "other_release": Entry(
        "a rollout gives the node another release just now", "wait, or see `batuta rollout status`", waits=True
    ),
    "taint_not_tolerated": Entry("the node has a taint that the component does not tolerate", "add a toleration"),
    "wrong_site": Entry("the node is at another site than this replica is for", "nothing: another replica is for it"),
    "wrong_node": Entry("this replica is for another node", "nothing: every node has its own replica"),
    "residency_wrong": Entry(
        "its data must not go there", "change its residency or the site's; or add nodes where the data may live"
    ),
    "runtime_missing": Entry(
        "the node lacks the runtime",
        "for models, install batuta[model] on the node, for .tflite batuta[litert], for .pte batuta[executorch]; for "
        "containers, Podman or Docker",
    ),
    "architecture_wrong": Entry(
        "it was not built for the node's processor", "build it for that one too, and say so in architectures"
    ),
    "device_missing": Entry("the node lacks a device that it needs", "attach it, or choose other nodes"),
    "condition_false": Entry(
        "the component's condition does not hold there", "change placement.where or the node's labels"
    ),
    "condition_fault": Entry("the component's condition cannot be evaluated there", "guard it with has(…)"),
    "policy_forbids": Entry(
        "a policy forbids it there", "see `batuta get policies`; change the policy or the component"
    ),
    "policy_fault": Entry("a policy cannot be evaluated there", "guard it with has(…)"),
    "cpu_short": Entry("too little processor time is free", "ask for less, or free some"),
    "memory_short": Entry("too little memory is free", "ask for less, or free some"),
    "disk_short": Entry("too little disk is free", "ask for less, or free some"),
    "accelerator_short": Entry(
        "too few accelerators, or too little of their memory, are free",
        "ask for less, or free some; where the driver does not tell its memory, say it in the node's spec.accelerators",
    ),
    "variant_unfit": Entry("no variant of the model fits there", "push a smaller variant"),
    "too_slow": Entry(
        "no variant that fits there has proved to be fast enough", "push a faster variant, or ask for less in slo"
    ),
    "already_here": Entry("another replica of this component is already there", "add nodes, or ask for fewer replicas"),
    "port_claimed": Entry("another instance there has its port", "choose another port, or add nodes"),
    "device_claimed": Entry("another instance there has its device", "add nodes that have one"),
    "policies_contradict": Entry(
        "the policies leave no node between them", "change one of them: `batuta get policies`"
    ),
    # Releases and references.
    "model_missing": Entry("no such model", "push it: `batuta model push FILE --name NAME --version VERSION`"),
    "version_missing": Entry("the model has no such version", "push it, or name one that exists"),
    "signature_missing": Entry(
        "a policy asks for a signer, and nobody has signed the model", "sign it: `batuta model sign NAME --key FILE`"
    ),
    "release_unknown": Entry("no such release is kept", "see `batuta rollout history APP`; or declare what is to run"),
    "release_gone": Entry(
        "what the release was made of is not there any more as it was", "push it again as a version of its own"
    ),
    "no_site": Entry(
        "there is no site with nodes", "join a node: `batuta token create` and `batuta join TOKEN`", waits=True
    ),
    "no_node": Entry("there is no node", "join one: `batuta token create` and `batuta join TOKEN`", waits=True),
    "nothing_fits": Entry("no node can take it", "see the reasons of the nodes below"),
    # Healing and replacing.
    "node_silent": Entry(
        "the node is silent; it may come back", "wait, or see `batuta describe node NAME`", waits=True
    ),
    "may_be_alive": Entry(
        "its silent holder may still run it, and it must never run twice", "wait for the lease", waits=True
    ),
    "no_substitute": Entry("its node is lost and no other can take it", "bring the node back, or add one"),
    "gave_way": Entry(
        "it gave way to a higher priority, and no other node can take it",
        "add room, ask for less, or raise spec.priority",
    ),
    "others_gave_way": Entry("others of lower priority give way to it", "wait", waits=True),
    "starting": Entry("it is starting", "wait", waits=True),
    "replacing": Entry("the new instance gets ready before the old one stops", "wait", waits=True),
    "update_locked": Entry(
        "it holds its update lock", "wait until it lets go of it: the file that BATUTA_UPDATE_LOCK names", waits=True
    ),
    "moving": Entry("it moves away: its node may no longer run it", "wait", waits=True),
    "move_waits": Entry(
        "it was asked to move, and the node cannot take it now", "wait; it is asked for ten minutes", waits=True
    ),
    "move_unknown": Entry("there is no such move to make", "see where it is: `batuta why APP`"),
    "disruption_budget": Entry(
        "no more of it may be missing there by our own doing",
        "bring back what is missing, or allow more in rollout.disruption of the application",
        waits=True,
    ),
    "making_room": Entry("the old instance stops first: both do not fit", "wait", waits=True),
    # On the node.
    "fetching": Entry("its artifact is on the way", "wait", waits=True),
    "window_closed": Entry(
        "its artifact waits for the hours in which the uplink takes it",
        "wait; or change spec.uplink.windows of the site, or raise spec.priority",
        waits=True,
    ),
    "budget_spent": Entry(
        "its artifact waits for tomorrow: today's bytes of the uplink are spent",
        "wait; or raise spec.uplink.budget of the site, or spec.priority",
        waits=True,
    ),
    "uplink_metered": Entry(
        "its artifact can wait, and the uplink is paid for by the byte",
        "give the site's uplink windows, or raise spec.priority",
        waits=True,
    ),
    "recipe_changed": Entry("the hub has cut the artifact anew", "wait: it is fetched by the new list", waits=True),
    "neighbour_lied": Entry(
        "a neighbour gave bytes that are not what was asked for", "check that node's disk; it is not asked for a while"
    ),
    "backing_off": Entry("it failed and waits before the next try", "see `batuta logs`", waits=True),
    "exited": Entry("its process ended", "see `batuta logs`"),
    "memory_exceeded": Entry(
        "it took, or asked for, more memory than it was promised, and ended by it",
        "raise resources.memory of the component",
    ),
    "engine_unreachable": Entry(
        "the node's container engine does not answer; what it runs may go on",
        "start Podman's or Docker's socket on the node",
        waits=True,
    ),
    "image_missing": Entry(
        "the image is neither on the node nor to be had",
        "push it to the hub: `batuta image push`; or check its registry",
    ),
    "mount_refused": Entry(
        "the node lets no container mount that path", "start the node with `--allow-mount PATH`; or use a volume"
    ),
    "start_failed": Entry("it could not be started", "see `batuta logs`"),
    "not_live": Entry("its liveness probe failed", "see `batuta logs`"),
    "not_ready": Entry("its readiness probe has not passed", "see `batuta logs`", waits=True),
    "digest_mismatch": Entry("the bytes are not what their digest says", "push the artifact again"),
    "signer_unknown": Entry(
        "nobody whose signature a policy asks for has signed the model",
        "sign it with such a key: `batuta model sign NAME --key FILE`; or change the policy",
    ),
    "signature_invalid": Entry(
        "a signature of the model is not one, or not of these bytes",
        "sign it again: `batuta model sign NAME --key FILE`",
    ),
    "artifact_missing": Entry("nobody has the artifact", "push it again: `batuta model push`"),
    "artifact_unreadable": Entry("the artifact cannot be loaded by its runtime", "check the file with its own tools"),
    "golden_mismatch": Entry(
        "on this machine the model does not answer its golden inputs as it must",
        "compare the machine's runtime and processor with those where the model is right; or push another variant",
    ),
    "golden_unreadable": Entry(
        "the golden inputs of the model cannot be read", "make them again: `batuta model push --golden-from DATA`"
    ),
    "too_much_memory": Entry(
        "it takes more memory than it may", "give it more, or push a smaller variant: `batuta model optimize NAME`"
    ),
    "proving": Entry("it replays its golden inputs before it is switched in", "wait", waits=True),
    "probation_failed": Entry(
        "it failed in its probation, and the node runs what ran before",
        "see its first error; correct the release and apply it again",
    ),
    "proving_failed": Entry("the process that was to prove the model ended without an answer", "see `batuta logs`"),
    "disk_full": Entry("the disk is full", "free some space; nothing was lost"),
    "hub_unreachable": Entry("the node cannot reach the hub; it goes on from its ledger", "check the link", waits=True),
    "two_machines": Entry(
        "two machines say that they are this node: a disk was copied",
        "end one of them, move its node directory away and join it under a name of its own",
    ),
    "lease_lapsed": Entry(
        "it must never run twice and the hub has been silent too long", "restore the link", waits=True
    ),
    "ledger_corrupt": Entry(
        "the node's ledger could not be read and was set aside", "nothing: the hub's order is read again"
    ),
    "ledger_unwritable": Entry(
        "the node's ledger cannot be written; it goes on from memory", "check the disk and the rights of its directory"
    ),
    "artifact_unwritable": Entry("the artifact cannot be kept on the node's disk", "check the disk"),
    "order_unreadable": Entry(
        "the node cannot read its newest assignment and goes on with the last one", "update the node agent"
    ),
    "broker_failed": Entry("the node's broker does not run as it should", "see the broker's journal"),
    "broker_restarted": Entry("the node's broker had died or frozen and was restarted", "see the broker's journal"),
    "gateway_failed": Entry(
        "the node's inference gateway ended and starts again when somebody asks", "see its log in node/gateway/log"
    ),
    "renewal_failed": Entry(
        "the node's certificate could not be renewed yet", "check the link and the hub", waits=True
    ),
    "report_garbled": Entry("the node's report cannot be read by the hub", "install the same version on both"),
    "clock_jumped": Entry("the node's clock jumped", "check its time service"),
    "port_taken": Entry("a port is in use by another program", "free it, or choose another"),
    "command_missing": Entry("the command is not on the node", "install it, or correct process.command"),
    "inbox_full": Entry("data was shed because the node's store was full", "give it more room, or more replicas"),
    # Making variants of a model.
    "variant_unmade": Entry(
        "such a variant cannot be made of this model", "see why; the model may have nothing that would gain by it"
    ),
    "quality_short": Entry(
        "the variant is not as good as was asked for",
        "calibrate with more data, try another kind of variant, or lower --floor",
    ),
    "data_unreadable": Entry(
        "the data cannot be read as the model's inputs", "see `batuta model optimize --help` for what is read"
    ),
    # Rollouts.
    "gate_broken": Entry(
        "what the updated nodes measured is beyond a gate's limit",
        "see `batuta rollout status APP`; correct the release and apply it again",
    ),
    "gate_undecided": Entry(
        "too little was measured to say that a gate is met",
        "wait, or send more traffic to the updated nodes; `batuta rollout status APP` tells what was measured",
        waits=True,
    ),
    "wave_late": Entry(
        "a wave was not through by its deadline",
        "see what its nodes say: `batuta rollout status APP`; then `batuta rollout resume APP`, or "
        "`batuta rollout undo APP`",
    ),
    "release_turned_down": Entry(
        "the nodes refused the release or failed with it",
        "see the first error: `batuta rollout status APP`; correct the release and apply it again, or, when the nodes "
        "were at fault, `batuta rollout retry APP`",
    ),
    "rolling_out": Entry("a release is under way, wave by wave", "see `batuta rollout status`", waits=True),
    "rollout_waits": Entry("the rollout waits for nodes", "bring them back, or wait", waits=True),
    "no_room_beside": Entry(
        "there is no room for the new model beside the old one, so it is not tried there",
        "make room on the node, or leave out `shadow` and `split`",
        waits=True,
    ),
    "rollout_unapproved": Entry(
        "the next wave waits for somebody to agree",
        "`batuta rollout approve APP`, or `batuta rollout undo APP`",
        waits=True,
    ),
    "rollout_paused": Entry("somebody paused the rollout", "`batuta rollout resume APP`, or `batuta rollout undo APP`"),
    "rollout_aborted": Entry(
        "somebody ended the rollout where it was",
        "`batuta rollout retry APP` goes on, `batuta rollout undo APP` goes back",
    ),
    "rollout_undone": Entry("somebody undid the rollout", "declare what is to run, or `batuta rollout retry APP`"),
    "rollout_unknown": Entry(
        "no rollout of it is known: its first release is its only one", "see `batuta rollout history APP`"
    ),
    "rollout_unfit": Entry(
        "that cannot be asked of the rollout as it is now", "see how it is: `batuta rollout status APP`"
    ),
    # Enrolment.
    "token_unknown": Entry("the token is not one of this hub", "make one: `batuta token create`"),
    "token_expired": Entry("the token has expired", "make a new one: `batuta token create`"),
    "token_used": Entry("the token has been used already", "make a new one: `batuta token create`"),
    "token_garbled": Entry("the token cannot be read", "paste the whole line that `batuta token create` printed"),
    "token_for_another": Entry("the token is for another node", "join under the name it was made for"),
    "too_many_tokens": Entry(
        "the hub keeps too many tokens", "revoke some: `batuta token ls`, `batuta token revoke ID`"
    ),
    "request_malformed": Entry("the signing request cannot be read", "join again with the same version as the hub's"),
    "node_removed": Entry("the hub knows no such node any more", "join again with a new token"),
    "node_refused": Entry("the node cannot be declared", "see what is wrong with it"),
    "hub_not_trusted": Entry(
        "the hub's certificate is not the one that was agreed on",
        "if it was set up anew, join it with a new token; if not, do not go on",
    ),
    "name_taken": Entry("another node has this name", "choose another: `batuta join --name NAME TOKEN`"),
    "name_invalid": Entry("this cannot be a node's name", "use lower-case letters, digits and dashes"),
    "approval_pending": Entry(
        "the machine waits for approval", "an admin of the hub says `batuta node approve NAME`", waits=True
    ),
    "join_refused": Entry("an admin has refused this machine", "ask them; to try again, join with a new token"),
    "clock_wrong": Entry("the machine's clock is far from the hub's", "set the clock"),
    "not_connected": Entry("the hub cannot be reached", "check the address and the firewall"),
    "not_enrolled": Entry(
        "the machine is not a node yet", "make a token: `batuta token create`; then `batuta join TOKEN`"
    ),
    "other_hub": Entry(
        "the machine is a node of another hub", "remove it there and move its state away; then join again"
    ),
    "wrong_authority": Entry("the certificate was signed by another hub", "join this one with a new token"),
    "certificate_expired": Entry("the certificate has ended", "join again with a new token"),
    "enrolment_unreadable": Entry(
        "what the machine kept of its enrolment cannot be read", "move it away and join again with a new token"
    ),
    "enrolment_unwritable": Entry(
        "what the machine must keep of its enrolment cannot be written", "check who owns its state directory"
    ),
    "enrolment_broken": Entry("the process that enrols ended without an answer", "try again; see its own words above"),
}
