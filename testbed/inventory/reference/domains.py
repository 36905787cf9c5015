"""Which domains of an inventory are judged by the reference of a machine, and which are not yet. Pure.

Every domain is in exactly one of the two tables; `tests/unit/inventory/test_reference.py` asks for that.
"""

from __future__ import annotations

from collections.abc import Mapping

FAMILIES = ("nft", "switch", "northbound", "southbound")  # domains whose other words name a table

# Judged: with the source of what a lab adds to the golden reading.
JUDGED: Mapping[str, str] = {
    "image": "the golden reading",
    "file": "the golden reading, the identity that was handed over, and files of services",
    "account": "the golden reading",
    "group": "the golden reading",
    "password": "the golden reading",
    "login file": "the golden reading",
    "access file": "the golden reading, and names of the machine",
    "authority": "the golden reading",
    "kernel": "the golden reading",
    "kernel key": "the golden reading",
    "kernel thread": "the golden reading, and a thread for each guest",
    "module": "the golden reading, and modules that services load",
    "module parameter": "the golden reading, and parameters of these modules",
    "manager's environment": "the golden reading",
    "unit": "the golden reading, and what a service's start changes",
    "unit file": "the golden reading",
    "profile": "the golden reading, and a profile of each guest",
    "profile namespace": "the golden reading",
}
# Not judged yet, with the reason.
NOT_JUDGED: Mapping[str, str] = {
    "image file": "only golden readings have it: with it a change that was taken back is no finding",
    "unread": "it is a gap, not a state; a gap in a judged domain makes the control inconclusive",
}


def judged(domain: str) -> bool:
    """Return whether a domain is judged; a domain of a family counts by its first word."""
    first = domain.partition(" ")[0]
    return domain in JUDGED or (domain not in NOT_JUDGED and first in FAMILIES and first in JUDGED)
