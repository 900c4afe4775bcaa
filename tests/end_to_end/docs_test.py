"""README.md, CONTRIBUTING.md and docs/*.md: every command they show runs, links and paths lead somewhere.

Blocks marked ```sh run, a page at a time, in a directory that looks like the root of a clone and holds a
small text of random words. `phalanx` there is a wrapper that appends --set overrides to `train` and `verify`,
so that a run has a few steps of a small model; everything else is as the reader would type it.

A block behind the line <!-- not run: REASON --> cannot run in a test. It is read instead: its make targets,
presets, scripts, files, programs, subcommands, options and configuration keys must exist.
"""

import json
import os
import random
import re
import shlex
import string
import subprocess
import sys
import tempfile
import time
import unittest

SOURCE = os.path.abspath(sys.argv.pop(2))  # arguments: the command, the source directory
COMMAND = os.path.abspath(sys.argv.pop(1))
BLOCK_SECONDS = 240  # verify runs a hundred cases

PAGES = ["README.md", "CONTRIBUTING.md"] + sorted(
    f"docs/{name}" for name in os.listdir(os.path.join(SOURCE, "docs")) if name.endswith(".md"))
FENCE = re.compile(r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?"
                   r"```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S)
FOLDERS = "phalanx|apps|bench|cmake|configs|docs|scripts|tests"
PATH = re.compile(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*\w)")
PLACEHOLDER = re.compile(r"\b(?:NAME|FOLDER|FILE)\b")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

WRAPPER = """#!/bin/sh
# Each run of `train` takes two steps more than the one before, so that a resumed one has something to do;
# not the ranks of one mpirun, which must agree.
case "$1" in
  train)
    [ -n "$OMPI_COMM_WORLD_RANK" ] || echo >>"{counter}"
    steps=$((2 * $(wc -l <"{counter}") + 2))
    set -- "$@" --set train.steps=$steps --set train.eval_every=0 --set train.eval_batches=1 ;;
esac
case "$1" in
  train|verify) set -- "$@" --set model.layers=2 --set model.width=48 --set model.context=16 ;;
esac
exec "{command}" "$@"
"""


def read(path):
    with open(os.path.join(SOURCE, path), encoding="utf-8") as f:
        return f.read()


def said_by(*arguments):
    """What the phalanx command prints, or its complaint."""
    result = subprocess.run([COMMAND, *arguments], cwd=SOURCE, capture_output=True, text=True, check=False,
                            stdin=subprocess.DEVNULL, timeout=BLOCK_SECONDS)
    return result.returncode, result.stdout + result.stderr


class Reader:
    """Looks at commands without running them; gives what is wrong with each."""

    def __init__(self):
        self.targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.M))
        presets = json.loads(read("CMakePresets.json"))["configurePresets"]
        self.presets = {p["name"] for p in presets if not p.get("hidden")}
        self.subcommands = set(re.findall(r"^  ([a-z]+) +\S", said_by("--help")[1], re.M))

    def faults(self, block):
        block = re.sub(r"\\\n", " ", block)
        for line in block.splitlines():
            for words in self.commands(line):
                yield from (f"`{line.strip()}`: {fault}" for fault in self.faults_of(words))

    @staticmethod
    def commands(line):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words = []
        for word in lexer:  # without comments
            if word and set(word) <= set("|&;"):
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words

    def faults_of(self, words):
        name, rest = words[0], words[1:]
        if name in ("export", "cd", "git", "sudo", "apt-get"):
            return []
        if name == "make":
            return [f"no target {t}" for t in rest if "=" not in t and t not in self.targets]
        if name == "mpirun":
            if "phalanx" not in rest:
                return ["mpirun of something else"]
            return self.faults_of(rest[rest.index("phalanx"):])
        if name in ("cmake", "ctest"):
            named = [rest[i + 1] for i, word in enumerate(rest) if word == "--preset"]
            return [f"no preset {p}" for p in named if p not in self.presets]
        if name == "phalanx" or re.fullmatch(r"build/\w+/bin/phalanx", name):
            return self.faults_of_phalanx(rest)
        return self.faults_of_program(name, rest)

    def faults_of_program(self, name, arguments):
        """A script of ours, or a program of bench/: it exists, and its source knows the options."""
        if name in ("bash", "python3"):
            name, *arguments = [a for a in arguments if a != "-B"]
        bench = re.fullmatch(r"build/\w+/bin/phalanx_bench_(\w+)", name)
        sources = [f"bench/{bench[1]}.{kind}" for kind in ("cc", "cu")] if bench else [name]
        source = next((s for s in sources if os.path.isfile(os.path.join(SOURCE, s))), None)
        if source is None:
            return [f"no {sources[0]}"]
        text = read(source)
        return [f"{source} knows no {a}" for a in arguments if a.startswith("--") and a not in text]

    def faults_of_phalanx(self, arguments):
        if not arguments or arguments[0] not in self.subcommands:
            return [f"no subcommand in {arguments}"]
        nested = arguments[0] == "bench" and len(arguments) > 1 and not arguments[1].startswith("-")
        status, text = said_by(*arguments[:2 if nested else 1], "--help")
        known = set(re.findall(r"(?<![\w-])--[a-z-]+", text))
        options = [a.split("=")[0] for a in arguments if a.startswith("--")]
        faults = [f"no option {o}" for o in options if o not in known]
        if not faults and arguments[0] == "train":  # files, keys and values too
            status, text = said_by(*arguments, "--print-config")
            faults = [] if status == 0 else [text.strip()]
        return faults


def faults_of_paths(page, text):
    """Paths of the repository that are not there."""
    named = set(PATH.findall(text))
    return [f"{page}: there is no {path}" for path in sorted(named)
            if not PLACEHOLDER.search(path) and not os.path.exists(os.path.join(SOURCE, path))]


def headings(text):
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def faults_of_links(page, text):
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    for link in LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        if not os.path.exists(os.path.join(SOURCE, target)):
            yield f"{page}: the link {link} leads nowhere"
        elif anchor and anchor not in headings(read(target) if path else text):
            yield f"{page}: {target} has no heading #{anchor}"


def random_text(seed):
    """20,000 characters that hold every printable one, so that any prompt of the pages can be continued."""
    chance = random.Random(seed)
    words = ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(1, 9))) for _ in range(200)]
    return string.printable + " ".join(chance.choices(words, k=4000))[:20000] + "\n"


class Docs(unittest.TestCase):
    def clone(self, folder):
        """A directory like the root of a clone, and the environment of its commands."""
        for name in os.listdir(SOURCE):
            if name not in ("build", "data", "out", ".git"):
                os.symlink(os.path.join(SOURCE, name), os.path.join(folder, name))
        os.mkdir(os.path.join(folder, "data"))
        os.mkdir(os.path.join(folder, ".bin"))
        seed = random.SystemRandom().getrandbits(32)
        print(f"text of seed {seed}", flush=True)
        with open(os.path.join(folder, "data", "shakespeare.txt"), "w", encoding="utf-8") as f:
            f.write(random_text(seed))
        wrapper = os.path.join(folder, ".bin", "phalanx")
        with open(wrapper, "w", encoding="utf-8") as f:
            f.write(WRAPPER.format(command=COMMAND, counter=os.path.join(folder, ".bin", "runs")))
        os.chmod(wrapper, 0o755)
        return {**os.environ, "PATH": os.path.join(folder, ".bin") + os.pathsep + os.environ["PATH"],
                "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

    def run_block(self, page, body, folder, env):
        shell = ["bash", "-eux", "-o", "pipefail", "-c", body]
        start = time.monotonic()
        result = subprocess.run(shell, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True,
                                text=True, errors="replace", check=False, timeout=BLOCK_SECONDS)
        print(f"{page}: {time.monotonic() - start:.1f} s: {body.strip().splitlines()[0]}", flush=True)
        self.assertEqual(result.returncode, 0,
                         f"{page}:\n{body}{result.stdout[-2000:]}{result.stderr[-2000:]}")

    def test_commands(self):
        reader = Reader()
        seen = 0
        for page in PAGES:
            with self.subTest(page), tempfile.TemporaryDirectory() as folder:
                env = self.clone(folder)
                for block in FENCE.finditer(read(page)):
                    if block["language"] != "sh":
                        continue
                    seen += 1
                    if block["why"]:
                        self.assertEqual(list(reader.faults(block["body"])), [], page)
                    else:
                        self.run_block(page, block["body"], folder, env)
        self.assertGreater(seen, 5)

    def test_links_and_paths(self):
        faults = []
        for page in PAGES:
            text = read(page)
            self.assertEqual(len(re.findall(r"^```", text, re.M)) % 2, 0, f"{page}: a fence is open")
            faults += [*faults_of_links(page, text), *faults_of_paths(page, text)]
        self.assertEqual(faults, [])

    def test_mistakes_are_found(self):
        reader = Reader()
        wrong = ["make dmeo", "cmake --preset nightly && make test", "scripts/dmeo.sh --text FILE",
                 "scripts/demo.sh --txet FILE", "phalanx trian configs/demo_moe.toml",
                 "mpirun -n 4 phalanx train configs/none.toml", "phalanx generate --modle out  # a comment",
                 "phalanx train configs/demo_moe.toml --set model.widht=8", "unknown program",
                 "build/release/bin/phalanx_bench_nothing"]
        for command in wrong:
            self.assertEqual(len(list(reader.faults(command))), 1, command)
        right = ["make demo", "ctest --preset dev -R comm/", "scripts/demo.sh --text FILE",
                 "mpirun -n 4 phalanx train configs/demo_moe.toml \\\n  --set train.steps=3  # quick"]
        for command in right:
            self.assertEqual(list(reader.faults(command)), [], command)
        links = "[a](docs/none.md) [b](docs/tour.md#none) [c](docs/tour.md#a-training-token)"
        self.assertEqual(len(list(faults_of_links("README.md", links))), 2)
        self.assertEqual(len(faults_of_paths("README.md", "see phalanx/base/none.h, docs/tour.md.")), 1)


if __name__ == "__main__":
    unittest.main()
