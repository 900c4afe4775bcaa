"""Ranks of one MPI world on two hosts: network namespaces with names of their own, joined by a virtual cable.
Nothing but TCP goes between them. Needs root, iproute2 and mpirun; says so and passes where they are not."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

BINARIES = os.path.dirname(sys.argv[1])  # arguments: the command, the source directory
del sys.argv[1:3]
PROGRAM = os.path.join(BINARIES, "test_comm_ranks")
NAMES = [f"phx{os.getpid()}{side}" for side in "ab"]  # of namespaces, cable ends and hosts
ADDRESSES = ["10.213.77.1", "10.213.77.2"]


def run(*command, check=True):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=check)


def why_not():
    if os.geteuid() != 0:
        return "not root"
    for tool in ("ip", "mpirun", "unshare"):
        if not shutil.which(tool):
            return f"no {tool}"
    if "libtsan" in run("ldd", PROGRAM).stdout:
        return "OpenMPI is not instrumented for ThreadSanitizer"
    if run("ip", "netns", "add", NAMES[0], check=False).returncode != 0:
        return "no network namespaces here"
    run("ip", "netns", "del", NAMES[0])
    return ""


# What mpirun starts its daemon on the other host with, in ssh's place.
AGENT = """#!/bin/sh
shift
exec ip netns exec {1} unshare --uts sh -c "hostname {1}; $*"
"""


@unittest.skipIf(why_not(), why_not())
class TwoHosts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for name in NAMES:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", NAMES[0], "type", "veth", "peer", "name", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES):
            run("ip", "link", "set", name, "netns", name)
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", name, "up")
        cls.folder = tempfile.mkdtemp()
        cls.agent = os.path.join(cls.folder, "agent.sh")
        with open(cls.agent, "w", encoding="utf-8") as f:
            f.write(AGENT.format(*NAMES))
        os.chmod(cls.agent, 0o755)

    @classmethod
    def tearDownClass(cls):
        for name in NAMES:
            run("ip", "netns", "del", name, check=False)
        shutil.rmtree(cls.folder)

    def start(self, ranks_a_host, *arguments):
        """The exit status, all that was said, and the seconds it took."""
        mpirun = ["mpirun", "--allow-run-as-root", "--mca", "plm_rsh_agent", self.agent,
                  "--host", ",".join(f"{a}:{ranks_a_host}" for a in ADDRESSES),
                  "--mca", "btl", "tcp,vader,self", "--mca", "btl_tcp_if_include", ADDRESSES[0] + "/24",
                  "--mca", "oob_tcp_if_include", ADDRESSES[0] + "/24",
                  "-n", str(2 * ranks_a_host), PROGRAM, *arguments]
        inside = f"hostname {NAMES[0]}; exec " + " ".join(mpirun)
        begin = time.monotonic()
        done = subprocess.run(["ip", "netns", "exec", NAMES[0], "unshare", "--uts", "sh", "-c", inside],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                              env=dict(os.environ, ASAN_OPTIONS="detect_leaks=0"), text=True, timeout=90,
                              check=False)
        return done.returncode, done.stdout, time.monotonic() - begin

    def test_every_collective(self):
        for ranks in (1, 2, 3):
            status, text, _ = self.start(ranks, "collectives")
            self.assertEqual(status, 0, text)

    def expect(self, culprit, how, pattern, survivors=3):
        status, text, seconds = self.start(2, how, str(culprit))
        self.assertNotEqual(status, 0)
        reports = re.findall(r"^pid \d+: (.*)$", text, re.MULTILINE)
        self.assertGreaterEqual(len([r for r in reports if re.search(pattern, r)]), survivors, text)
        self.assertLess(seconds, 30)

    # OpenMPI ends the rank beside a killed one if that was reading its memory just then.
    def test_a_rank_killed_on_the_other_host(self):
        self.expect(2, "killed", rf"rank 2 \(pid \d+ on host {NAMES[1]}\) is gone.*all_reduce",
                    survivors=2)

    def test_rank_0_killed(self):
        self.expect(0, "killed", r"rank 0.* is gone.*all_reduce", survivors=2)

    def test_a_rank_stopped_on_the_other_host(self):
        self.expect(3, "stopped", rf"rank 3 \(pid \d+ on host {NAMES[1]}.*no sign of life.*all_reduce")

    def test_calls_that_differ_between_hosts(self):
        self.expect(2, "differs", r"calls differ.*(all_reduce.*all_gather|all_gather.*all_reduce)")


if __name__ == "__main__":
    unittest.main()
