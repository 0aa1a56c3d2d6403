"""Every subject that Batuta puts on the wire, in one place.

A subject is an address, and on this fabric also a right: the hub's broker lets a node use exactly the subjects that
`rights_of_node` lists, and a test walks through them. So an address that is not made here does not exist.

    CONTROL, between a node and the hub
      batuta.hub.alive              hub  -> all    the hub's pulse: is anyone deciding, and what time is it there
      batuta.hub.site.<site>        hub  -> all    what the nodes of this site share has changed: ask; says no more
      batuta.link.up, .down         a node's broker to its own agent: the link to the hub was made, was lost
      batuta.alive.<node>           node -> hub    a pulse; not stored
      batuta.report.<node>          node -> hub    becomes table `observed`, key `report.<node>`
      batuta.assignment.<node>      hub  -> node   table `decided`, key `assignment.<node>`, sent when it changes
      batuta.ask.<node>.<verb>      node -> hub    a question, answered
      batuta.tell.<node>.<verb>     hub  -> node   a question
      batuta.told.<node>.<id>       node -> hub    the answer to it
      batuta.up.<node>.<class>      node -> hub    becomes log `up-<class>`
      batuta.mesh.<node>.<namespace>.<other>.<instance>   node -> other node    a call to a model at another site
      batuta.meshed.<other>.<node>.<id>                   other node -> node    the answer to it
      _INBOX.<who>.>                               answers to the one who asked, in all other cases

    SITE, between the nodes of a site
      cameras.c1.frame              MQTT topic cameras/c1/frame, as published
      $MQTT.msgs.cameras.c1.frame   the same, kept by the broker that took it; never leaves that broker
      out.<node>.meters.c1.reading  a result, kept at the node whose input it answers, then sent as meters.c1.reading
      ctl.>                         between workers; no device may speak here
      ctl.alive.<node>              a node's pulse to its neighbours; not stored
      ctl.files.<node>              what a node has of a file that it collects, or holds
      ctl.chunks.<node>             a question to a node: some chunks of a file
      ctl.infer.<node>.<instance>   a request to a model worker, answered; Open Inference Protocol
      ctl.serving.<node>.<instance> a model worker's card: where it answers, and how it fares; not stored
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from batuta.core.serving import instance_token
from batuta.kinds import topics

if TYPE_CHECKING:
    from collections.abc import Sequence

UP_CLASSES: Final = ("critical", "normal", "bulk")

_TOKEN = re.compile(r"^[A-Za-z0-9_-]+$")


def _token(word: str) -> str:
    """One subject level. A name with a dot or a wildcard would be a different address, so it is refused."""
    if not _TOKEN.match(word):
        raise ValueError(f"{word!r} cannot be one level of a subject: letters, digits, '-' and '_' only")
    return word


# --- CONTROL: between a node and the hub ----------------------------------------------------------------------------

ALL_ALIVE: Final = "batuta.alive.*"
ALL_REPORTS: Final = "batuta.report.*"
# Wide on purpose: the broker prunes a wish to hear by rights, and loses `batuta.ask.*.*` where a right ends in `*` too.
ALL_ASKS: Final = "batuta.ask.>"
ALL_TOLD: Final = "batuta.told.>"
HUB_ALIVE: Final = "batuta.hub.alive"
LINK_UP: Final = "batuta.link.up"
LINK_DOWN: Final = "batuta.link.down"


def alive(node: str) -> str:
    return f"batuta.alive.{_token(node)}"


def report(node: str) -> str:
    return f"batuta.report.{_token(node)}"


def site_changed(site: str) -> str:
    """Heard by whoever wants to, so it carries nothing: what there is to know is told to the site's nodes when they
    ask. A node may move from site to site, and rights are given once for each link."""
    return f"batuta.hub.site.{_token(site)}"


def assignment(node: str) -> str:
    return f"batuta.assignment.{_token(node)}"


def ask(node: str, verb: str) -> str:
    return f"batuta.ask.{_token(node)}.{_token(verb)}"


def tell(node: str, verb: str) -> str:
    return f"batuta.tell.{_token(node)}.{_token(verb)}"


def all_tells(node: str) -> str:
    return f"batuta.tell.{_token(node)}.*"


def told(node: str, question: str) -> str:
    """Where the node answers. An inbox of the hub would not do: a right to it is one to the answers of all nodes."""
    return f"batuta.told.{_token(node)}.{_token(question)}"


def far_call(asker: str, namespace: str, node: str, instance: str) -> str:
    """Where `asker` calls an instance at a node of another site. Who asks, and in which namespace, is in the address:
    so the hub's broker can say who may."""
    return f"batuta.mesh.{_token(asker)}.{_token(namespace)}.{_token(node)}.{_token(instance_token(instance))}"


def far_calls_to(node: str) -> str:
    """All calls that reach a node from other sites."""
    return f"batuta.mesh.*.*.{_token(node)}.>"


def far_answer(node: str, asker: str) -> str:
    """Where `node` answers `asker`, without the last level: it can answer as itself only."""
    return f"batuta.meshed.{_token(node)}.{_token(asker)}"


def far_answers_to(asker: str) -> str:
    return f"batuta.meshed.*.{_token(asker)}.*"


def up(node: str, priority: str) -> str:
    if priority not in UP_CLASSES:
        raise ValueError(f"{priority!r} is no class of data: {', '.join(UP_CLASSES)}")
    return f"batuta.up.{_token(node)}.{priority}"


def inbox(who: str) -> str:
    """Prefix of the answers to `who`; the hub's broker lets a node hear only its own."""
    return f"_INBOX.{_token(who)}"


def node_of(subject: str) -> str:
    """The node that `batuta.<what>.<node>…` is about."""
    parts = subject.split(".")
    if len(parts) < 3 or parts[0] != "batuta":
        raise ValueError(f"{subject!r} is not about a node")
    return parts[2]


def verb_of(subject: str) -> str:
    """The verb of `batuta.ask.<node>.<verb>` and `batuta.tell.<node>.<verb>`."""
    parts = subject.split(".")
    if len(parts) != 4 or parts[0] != "batuta" or parts[1] not in ("ask", "tell"):
        raise ValueError(f"{subject!r} carries no verb")
    return parts[3]


# --- Tables and logs as JetStream knows them ------------------------------------------------------------------------

HUB_DOMAIN: Final = "hub"


def node_domain(node: str) -> str:
    """The JetStream domain of a node's broker. Prefixed, so that a node called `hub` is not the hub."""
    return f"n-{_token(node)}"


def table_stream(table: str) -> str:
    return f"KV_{_token(table)}"


def table_key(table: str, key: str) -> str:
    return f"$KV.{_token(table)}.{key}"


def log_subject(log: str, key: str) -> str:
    """Where an entry of `log` is written."""
    priority = log.removeprefix("up-")
    return up(key, priority) if priority in UP_CLASSES and log != priority else f"log.{_token(log)}.{key}"


def log_filter(log: str) -> str:
    """What log `log` keeps: `up-*` what nodes send up, any other what is written to it."""
    priority = log.removeprefix("up-")
    return f"batuta.up.*.{priority}" if priority in UP_CLASSES and log != priority else f"log.{_token(log)}.>"


def log_key(log: str, subject: str) -> str:
    """The key of an entry, from its subject: for logs `up-*` the node it came from."""
    return node_of(subject) if subject.startswith("batuta.up.") else subject.removeprefix(f"log.{log}.")


# The broker itself turns keys into subjects and subjects into keys; these are the two rewritings, in its own words.
ASSIGNMENT_KEYS: Final = "assignment.*"
REPUBLISHED_ASSIGNMENT: Final = "batuta.assignment.{{wildcard(1)}}"
TRANSFORMED_REPORT: Final = "report.{{wildcard(1)}}"


def assignment_key(node: str) -> str:
    return f"assignment.{_token(node)}"


def report_key(node: str) -> str:
    return f"report.{_token(node)}"


def direct_get(domain: str, table: str, key: str) -> str:
    """Where one key can be read with one request, over any number of leaf links and without a consumer."""
    return f"$JS.{_token(domain)}.API.DIRECT.GET.{table_stream(table)}.{table_key(table, key)}"


@dataclass(frozen=True, slots=True)
class Rights:
    """What one connection may do; what is not listed, it may not."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def rights_of_node(node: str, namespaces: Sequence[str] = ()) -> Rights:
    """All that the link of one node may carry: its own subjects, and nothing of another node or of the hub's tables.

    With other sites it may talk of models in `namespaces`, those of which it runs something.
    """
    return Rights(
        publish=(
            alive(node),
            report(node),
            f"batuta.ask.{_token(node)}.*",
            f"batuta.told.{_token(node)}.*",
            *(up(node, each) for each in UP_CLASSES),
            direct_get(HUB_DOMAIN, "decided", assignment_key(node)),
            *(f"batuta.mesh.{_token(node)}.{_token(each)}.>" for each in namespaces),
            f"batuta.meshed.{_token(node)}.>",
        ),
        subscribe=(
            HUB_ALIVE,
            "batuta.hub.site.*",
            assignment(node),
            all_tells(node),
            f"{inbox(node)}.>",
            far_calls_to(node),
            f"batuta.meshed.*.{_token(node)}.>",
        ),
    )


def rights_of_gateway(node: str) -> Rights:
    """What a node's inference gateway may say and hear at the node's own broker, account CONTROL. The link to the hub
    has rights of its own, so this keeps it from the rest of its node's, not from other nodes'."""
    return Rights(
        publish=(ask(node, "elsewhere"), f"batuta.mesh.{_token(node)}.>", f"batuta.meshed.{_token(node)}.>"),
        subscribe=(far_calls_to(node), far_answers_to(node), f"{gateway_inbox(node)}.>"),
    )


def gateway_inbox(node: str) -> str:
    return f"{inbox(node)}.gateway"


# --- SITE: topics. What they may be says `kinds.topics` ---------------------------------------------------------------

RESERVED_ROOTS: Final = topics.RESERVED_ROOTS

# Where a broker keeps what MQTT clients publish with QoS 1 or 2, before it acknowledges. Leaf links do not carry it.
MQTT_KEPT: Final = "$MQTT.msgs"
MQTT_KEPT_STREAM: Final = "$MQTT_msgs"


@lru_cache(maxsize=4096)
def subject_of_topic(topic: str) -> str:
    """The NATS subject of an MQTT topic or topic filter, by the broker's own rules.

    `a/b` is `a.b`; a dot inside a level becomes `//`; a slash that would leave an empty level stays, as `/`.
    """
    if wrong := topics.why_no_topic(topic):
        raise ValueError(f"{topic!r}: {wrong.message}, {wrong.hint}")
    out: list[str] = []
    last = len(topic) - 1
    for i, char in enumerate(topic):
        if char == "/":
            if not out or out[-1][-1] == ".":
                out.append("/.")
            elif i == last or topic[i + 1] == "/":
                out.append("./")
            else:
                out.append(".")
        else:
            out.append({".": "//", "+": "*", "#": ">"}.get(char, char))
    if out[-1][-1] == ".":
        out.append("/")
    return "".join(out)


@lru_cache(maxsize=4096)
def topic_of_subject(subject: str) -> str:
    """The MQTT topic, or topic filter, of a subject: the inverse of `subject_of_topic`."""
    out: list[str] = []
    i = 0
    while i < len(subject):
        pair = subject[i : i + 2]
        if pair == "//":
            out.append(".")
            i += 2
        elif pair == "/.":
            out.append("/")
            i += 2
        elif pair[0] == "/":
            i += 1
        else:
            out.append({".": "/", "*": "+", ">": "#"}.get(pair[0], pair[0]))
            i += 1
    return "".join(out)


def subjects_of_topic_filter(topic: str) -> tuple[str, ...]:
    """All subjects that a topic filter means: `x/#` also matches `x` itself, which takes a second subject."""
    subject = subject_of_topic(topic)
    return (subject[:-2], subject) if subject.endswith(".>") else (subject,)


def kept(subject: str) -> str:
    """Where the broker that took an MQTT message of QoS 1 or 2 keeps it."""
    return f"{MQTT_KEPT}.{subject}"


def result(ingest: str, subject: str) -> str:
    """Where a result is kept: at the node that took the input. It then goes out under `subject` itself."""
    return f"out.{_token(ingest)}.{subject}"


ALL_NEIGHBOURS: Final = "ctl.alive.*"


def neighbour(node: str) -> str:
    """Where a node tells its site that it is alive."""
    return f"ctl.alive.{_token(node)}"


ALL_SERVING: Final = "ctl.serving.*.*"


def infer(node: str, instance: str) -> str:
    """Where the model worker of `instance` (its whole name) at `node` takes requests from its site."""
    return f"ctl.infer.{_token(node)}.{_token(instance_token(instance))}"


def serving(node: str, instance: str) -> str:
    """Where that worker sends its card."""
    return f"ctl.serving.{_token(node)}.{_token(instance_token(instance))}"


ALL_FILES: Final = "ctl.files.*"


def files(node: str) -> str:
    """Where a node tells its site what it has of a file."""
    return f"ctl.files.{_token(node)}"


def chunks(node: str) -> str:
    """Where a node of the site is asked for parts of a file."""
    return f"ctl.chunks.{_token(node)}"


def all_results(node: str, root: str) -> str:
    return f"out.{_token(node)}.{_token(root)}.>"


def result_stream(node: str, root: str) -> str:
    """Named after the node: acknowledgements carry stream and consumer names, and cross the site."""
    return f"out-{_token(node)}-{_token(root)}"


def reader(component: str, node: str) -> str:
    """The durable consumer of one component at one node. Named after the node for the same reason."""
    return f"{_token(component)}-at-{_token(node)}"


def topic_subject(subject: str) -> str:
    """The plain subject below `$MQTT.msgs.` or `out.<node>.`; any other subject is its own."""
    if subject.startswith(MQTT_KEPT + "."):
        return subject[len(MQTT_KEPT) + 1 :]
    if subject.startswith("out."):
        return subject.split(".", 2)[2]
    return subject
