"""Two hosts on one machine: network namespaces with names and addresses of their own, joined by a virtual
cable, each on half of the cores. The second one numbers its processes on its own. Nothing but TCP goes
between them, so that neither MPI nor we can take shared memory."""

import os
import shutil
import subprocess
import sys
import tempfile

NAMES = [f"phx{os.getpid()}{side}" for side in "ab"]  # of namespaces, cable ends and hosts
ADDRESSES = ["10.213.77.1", "10.213.77.2"]

# What mpirun starts its daemon on the other host with, in ssh's place.
AGENT = """#!/bin/sh
shift
exec ip netns exec {name} taskset -c {cores} \\
  unshare --uts --pid --fork --mount-proc sh -c "hostname {name}; $*"
"""


def halves(cores):
    """Of the cores, for taskset; both are all of one."""
    middle = len(cores) // 2
    return [",".join(map(str, half)) for half in (cores[:middle] or cores, cores[middle:])]


CORES = halves(sorted(os.sched_getaffinity(0)))


def run(*command, check=True):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=check)


def why_not(program):
    """Why there can be no two hosts for that program here; "" if there can. They need root, iproute2 and
    mpirun."""
    if os.geteuid() != 0:
        return "not root"
    for tool in ("ip", "mpirun", "unshare"):
        if not shutil.which(tool):
            return f"no {tool}"
    if "libtsan" in run("ldd", program).stdout:
        return "OpenMPI is not instrumented for ThreadSanitizer"
    if run("ip", "netns", "add", NAMES[0], check=False).returncode != 0:
        return "no network namespaces here"
    run("ip", "netns", "del", NAMES[0])
    return ""


class Hosts:
    """Both hosts, until close()."""

    def __init__(self):
        for name in NAMES:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", NAMES[0], "type", "veth", "peer", "name", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES):
            run("ip", "link", "set", name, "netns", name)
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", name, "up")
        self.folder = tempfile.mkdtemp()
        self.agent = os.path.join(self.folder, "agent.sh")
        with open(self.agent, "w", encoding="utf-8") as f:
            f.write(AGENT.format(name=NAMES[1], cores=CORES[1]))
        os.chmod(self.agent, 0o755)

    def slow_down(self, rate):
        """The cable to `rate` each way, as in "1gbit"."""
        for name in NAMES:
            run("tc", "-n", name, "qdisc", "replace", "dev", name, "root", "tbf",
                "rate", rate, "burst", "256kb", "latency", "10ms")

    def sent(self):
        """Bytes that both hosts have put on the cable, by the system's account."""
        return sum(int(run("ip", "netns", "exec", name, "cat",
                           f"/sys/class/net/{name}/statistics/tx_bytes").stdout) for name in NAMES)

    def close(self):
        for name in NAMES:
            run("ip", "netns", "del", name, check=False)
        shutil.rmtree(self.folder)

    def mpirun(self, ranks_a_host, *command, deadline=90):
        """`command` on so many ranks of each host, ranks 0 … on the first one."""
        words = ["mpirun", "--allow-run-as-root", "--mca", "plm_rsh_agent", self.agent,
                 "--host", ",".join(f"{a}:{ranks_a_host}" for a in ADDRESSES),
                 "--mca", "odls_base_sigkill_timeout", "3",  # for the survivors' reports
                 "--mca", "orte_leave_session_attached", "1",  # or the second host ends at once
                 "--mca", "mpi_yield_when_idle", "1",  # a host may have more ranks than cores
                 "--bind-to", "none",  # or ranks of both hosts get the same core
                 "--mca", "btl", "tcp,vader,self", "--mca", "btl_tcp_if_include", ADDRESSES[0] + "/24",
                 "--mca", "oob_tcp_if_include", ADDRESSES[0] + "/24",
                 "-n", str(2 * ranks_a_host), *command]
        inside = f"hostname {NAMES[0]}; exec " + " ".join(words)
        return subprocess.run(["ip", "netns", "exec", NAMES[0], "taskset", "-c", CORES[0],
                               "unshare", "--uts", "sh", "-c", inside],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                              env=dict(os.environ, ASAN_OPTIONS="detect_leaks=0"), text=True,
                              timeout=deadline, check=False)


def main(arguments):
    """two_hosts.py RANKS_A_HOST COMMAND…: what the command says on ranks of both hosts."""
    reason = why_not(arguments[1])
    if reason:
        print(f"no two hosts: {reason}", file=sys.stderr)
        return 1
    hosts = Hosts()
    try:
        windows = ("--mca", "osc", "pt2pt")  # of what OpenMPI has for one-sided puts, this works over TCP
        done = hosts.mpirun(int(arguments[0]), *windows, *arguments[1:], deadline=900)
    finally:
        hosts.close()
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
