"""All timeouts between the outer machine and the checks, in seconds, each with its reason.

A timeout that is `stretched` is multiplied by the slowness of the machine (`testbed.model.environment`),
because it waits for work of an emulated processor. Progress of a boot extends it as well
(`testbed.deadline`). The others wait for the outer machine, or have slack for any machine. Polling intervals
and the windows of observations are no timeouts; they are defined where they are used. So are the timeouts of
programs that run in guests and on machines (`testbed.payload`).
"""

from __future__ import annotations


class Timeout(float):
    """A timeout in seconds, with its reason.

    Args:
        seconds: the timeout, before any stretching.
        reason: the event that is waited for, and why it takes no longer.
        stretched: whether the slowness of the machine multiplies it.

    """

    reason: str
    stretched: bool

    def __new__(cls, seconds: float, reason: str, *, stretched: bool = False) -> Timeout:
        """Return the number of seconds, with the reason as an attribute."""
        made = super().__new__(cls, seconds)
        made.reason, made.stretched = reason, stretched
        return made


# Programs on the outer machine
VERSION = Timeout(30, "QEMU prints its version")
NAMESPACES = Timeout(30, "mount or ip in new namespaces")
NAMESPACES_TRIED = Timeout(20, "doctor makes namespaces to see whether it may")
FIRST_LINE = Timeout(60, "the first process of a lab's namespaces reports that it is ready")
NAMESPACES_END = Timeout(30, "a lab's first process ends after its signal, and all others with it")
ROGUE_HOST = Timeout(30, "a rogue host's namespace gets its interface")
ROGUE_LIFE = Timeout(900, "a rogue host ends by itself: longer than any observation")
DISK = Timeout(60, "qemu-img makes or reads one disk")
HOST_LOOK = Timeout(120, "a host of others answers with its workers; a silent one is one result")
HOST_RECORD = Timeout(900, "a host of others reads its folders and sends its settings, if emulated as well")
HOST_RESTORE = Timeout(3600, "packages and files of a host of others are given back, if emulated as well")
DELETION = Timeout(300, "folders of another account are deleted, disks included")
IMAGE_STEP = Timeout(900, "one program of an image's build")
IMAGE = Timeout(1800, "one image is baked, packages included, by two processors without KVM")

# libvirt and QEMU
LIBVIRT = Timeout(120, "libvirt answers by itself; the library would wait for ever")
MEMORY_SAVE = Timeout(60, "QEMU writes one machine's memory to a file")
MEMORY_BOOT = Timeout(120, "a machine without identity boots until it can be saved", stretched=True)
MEMORY_START = Timeout(15, "one step of a machine's start from saved memory", stretched=True)

# Machines of the lab
LOGIN = Timeout(75, "a machine boots until it accepts our login", stretched=True)
LOGIN_BANNER = Timeout(
    60, "sshd of a busy machine sends its banner; it counts connections that end earlier (decision 0003)"
)
SESSION = Timeout(120, "a machine starts the far end of a session; paramiko would wait for ever")
SESSION_ANSWER = Timeout(20, "an answer is on its way after its command's own deadline")
ORPHANS = Timeout(60, "commands of an earlier session end: they have ten seconds, and are killed then")
CHECK_LOGIN = Timeout(60, "a machine that runs accepts a login before the checks")
GUEST_BOOT = Timeout(45, "a guest is ready, alone on a machine with KVM", stretched=True)
GUEST_PING = Timeout(10, "a guest's agent answers a ping, or sets the clock")
GUEST_CALL = Timeout(10, "a guest's agent answers while its guest gets an identity")

# The probe and the agent that it is asked through
AGENT_CALL = Timeout(20, "a guest's agent answers one call")
AGENT_FILE = Timeout(60, "a whole file goes through a guest's agent")
PROBE_LIFE = Timeout(900, "a probe that is not asked ends by itself")
PROBE_CALL = Timeout(300, "one request to a probe, an observation included")
PROBE_ANSWER = Timeout(60, "an answer comes, beside the time that its request asks for")
PROBE_END = Timeout(30, "a probe ends; one that cannot be reached ends by itself")
PROBE_LINE = Timeout(10, "a guest takes one line of a request")
PROBE_SILENCE = Timeout(10, "a guest that is silent for longer is asked whether its probe still runs")
PROBE_SHELL = Timeout(15, "a shell at a probe's pipe ends by itself")
PROBE_BUDGET = Timeout(900, "late and missing answers of one guest in one run, together")
SEEN_SENDING = Timeout(30, "guests that flood are seen sending")
COUNTERS = Timeout(20, "a node answers after it has waited for its counters")
BEATING = Timeout(280, "machines are watched for standing still: less than one request may take")
LOGIN_PENALTY = Timeout(120, "sshd's penalty for failed logins ends well before")
EPHEMERAL_BOOT = Timeout(90, "an ephemeral guest boots until it attacks")
EPHEMERAL_LIFE = Timeout(280, "an ephemeral guest ends by itself")

# Checks
DISRUPTED = Timeout(280, "guests attack while a part of the lab is restarted: less than one request may take")
REBOOT = Timeout(200, "a machine reboots during a check")
CONNECTION = Timeout(30, "a connection is in use before its rule is removed")
HEARTBEAT = Timeout(60, "a busy node answers a heartbeat; a later answer counts as none")
OVERLAY = Timeout(240, "receivers listen while the fabric is attacked")
FLOODS = Timeout(200, "all floods of one observation together")
TAMPERING = Timeout(60, "a breach changes the Python of a guest")
