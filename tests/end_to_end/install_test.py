#!/usr/bin/env python3
"""What `cmake --install` gives: the command, and find_package(phalanx), which examples/ep_hello uses."""

import os
import re
import subprocess
import sys
import tempfile
import unittest

SOURCE = os.path.abspath(sys.argv.pop(2))  # arguments: the command, the source directory
PHALANX = os.path.abspath(sys.argv.pop(1))
BUILD = os.path.dirname(os.path.dirname(PHALANX))
SANITIZE = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}


def run(*command, fails=False):
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if (result.returncode != 0) != fails:
        raise AssertionError(f"{' '.join(command)}: {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result.stdout + result.stderr


def of_cache(name):
    """A variable of the build that this test belongs to."""
    with open(os.path.join(BUILD, "CMakeCache.txt"), encoding="utf-8") as f:
        return re.search(rf"^{name}:\w+=(.*)$", f.read(), re.M).group(1)


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.holder = tempfile.TemporaryDirectory(prefix="phalanx-install-")
        cls.prefix = os.path.join(cls.holder.name, "prefix")
        run("cmake", "--install", BUILD, "--prefix", cls.prefix)

    @classmethod
    def tearDownClass(cls):
        cls.holder.cleanup()

    def configure(self, name, source, *arguments, fails=False):
        build = os.path.join(self.holder.name, name)
        flags = SANITIZE.get(of_cache("PHALANX_SANITIZE"), "")
        return run("cmake", "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={self.prefix}",
                   f"-DCMAKE_CXX_FLAGS={flags}", *arguments, fails=fails)

    def test_example(self):
        self.configure("hello", os.path.join(SOURCE, "examples", "ep_hello"), "-DCMAKE_BUILD_TYPE=Release")
        run("cmake", "--build", os.path.join(self.holder.name, "hello"))
        said = run(os.path.join(self.holder.name, "hello", "ep_hello"))
        ranks = re.findall(r"^rank (\d): \d+ rows came, every sum is right$", said, re.M)
        self.assertEqual(sorted(ranks), ["0", "1", "2", "3"], said)

    def test_command(self):
        self.assertIn("phalanx ", run(os.path.join(self.prefix, "bin", "phalanx"), "--version"))

    def test_every_header(self):
        """All headers are there, and those of the folders a user starts with need nothing else."""
        ours = {os.path.relpath(os.path.join(folder, name), SOURCE)
                for folder, _, names in os.walk(os.path.join(SOURCE, "phalanx")) for name in names
                if name.endswith(".h")}
        include = os.path.join(self.prefix, "include")
        missing = [h for h in ours if not os.path.exists(os.path.join(include, h))]
        self.assertEqual(missing, [])
        text = "".join(f'#include "{h}"\n' for h in sorted(ours)
                       if re.match(r"phalanx/(ep|comm|train)/[^/]+\.h$", h) and "cuda" not in h)
        run("g++", "-std=c++20", "-fsyntax-only", "-x", "c++", "-I", include, self.write("all.h", text))

    def test_version_and_components(self):
        for package, says in (("phalanx 0.0", "0.1.0"), ("phalanx 9.0", "0.1.0"),
                              ("phalanx 0.1 COMPONENTS ep nonsense", "nonsense")):
            name = re.sub(r"\W", "_", package)
            os.mkdir(os.path.join(self.holder.name, name))
            self.write(os.path.join(name, "CMakeLists.txt"), "cmake_minimum_required(VERSION 3.25)\n"
                       f"project(p LANGUAGES CXX)\nfind_package({package} REQUIRED)\n")
            said = self.configure(name + "_build", os.path.join(self.holder.name, name), fails=True)
            self.assertIn(says, said)

    def write(self, name, text):
        path = os.path.join(self.holder.name, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        return path


if __name__ == "__main__":
    unittest.main()
