"""What schemathesis loads beside the document: how its requests are led, so that they come to an end and somewhere."""

from __future__ import annotations

from itertools import count
from typing import Any

import schemathesis

ENDLESS = ("watch", "follow", "wait")
KNOWN = {"namespace": "default", "name": "one"}
"""What the test declares before: names from chance alone would meet nothing that is there."""
turns = count()


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    for word in ENDLESS:
        # A stream of events is no document that a schema could describe; the other tests with real clients follow them.
        (case.query or {}).pop(word, None)
    if case.method != "DELETE" and case.path_parameters and next(turns) % 2:
        case.path_parameters |= {name: KNOWN[name] for name in case.path_parameters if name in KNOWN}
