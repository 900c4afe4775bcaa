#!/usr/bin/env python3
"""The ratchet: measures the code, prints a table and fails where a measure is worse than limits.json.

  ratchet.py [--root DIR] [--limits FILE]   measure and compare
  ratchet.py --update                       tighten limits.json to what was measured; never loosens it

A measure better than its goal (STYLE) is never held against us: --update stops at the goal.
"""

import argparse
import dataclasses
import json
import os
import re
import sys

import cpp

WINDOW = 8
COLUMNS = 110
COLUMN_FILES = cpp.CPP + (".py", ".sh", ".cmake", "CMakeLists.txt")


@dataclasses.dataclass
class Measure:
    """One number, the limit it is held against, and where the worst of it lies."""
    name: str
    value: float
    goal: float
    where: list = dataclasses.field(default_factory=list)
    at_least: bool = False  # larger is better

    def worse_than(self, limit):
        return self.value < limit if self.at_least else self.value > limit


def is_kernel(path):
    return path.endswith((".cu", ".cuh")) or "_kernel" in os.path.basename(path)


def is_test(path):
    return path.startswith("tests" + os.sep)


def percent(part, whole):
    return round(100.0 * part / whole, 2) if whole else 0.0


class Tree:
    """All C++ files of a root, read once."""

    def __init__(self, root):
        self.root = root
        self.text = {path: cpp.read(root, path) for path in cpp.files(root)}
        self.code = {path: cpp.code_only(text) for path, text in self.text.items()}
        self.items = {path: cpp.items(code) for path, code in self.code.items()}
        self.needs = arrows(root)

    def functions(self):
        """(path, first line, lines, signature) of each function definition."""
        for path, items in self.items.items():
            for item in items:
                signature = cpp.signature(item.head) if item.kind == "function" else None
                if signature:
                    first = cpp.line_of(self.code[path], item.start)
                    yield path, first, cpp.line_of(self.code[path], item.end) - first + 1, signature


def arrows(root):
    """{folder: the folders it may include}, read from the one place that declares them."""
    path = os.path.join(root, "phalanx", "CMakeLists.txt")
    direct = {}
    if os.path.exists(path):
        text = re.sub(r"#[^\n]*", "", cpp.read(root, os.path.join("phalanx", "CMakeLists.txt")))
        for name, rest in re.findall(r"phalanx_library\(\s*(\w+)([^)]*)\)", text):
            needs = re.search(r"NEEDS((?:\s+[a-z_]\w*)+)", rest)
            direct[name] = needs[1].split() if needs else []
    reach = {}

    def walk(name):
        if name not in reach:
            reach[name] = {name}
            for other in direct.get(name, []):
                reach[name] |= walk(other)
        return reach[name]

    for name in direct:
        walk(name)
    return reach


def longest(tree, name, goal, wanted):
    sizes = sorted(((text.count("\n"), path) for path, text in tree.text.items() if wanted(path)),
                   reverse=True)
    over = [f"{path}: {n} lines" for n, path in sizes if n > goal]
    over = over or [f"{path}: {n} lines" for n, path in sizes[:1]]
    return Measure(name, sizes[0][0] if sizes else 0, goal, over)


def long_functions(tree):
    plain, kernels, where, where_kernels = [], [], [], []
    for path, line, lines, signature in tree.functions():
        kernel = is_kernel(path) and re.search(r"\b__(?:global|device)__\b", signature.returns)
        (kernels if kernel else plain).append(lines)
        if lines > (150 if kernel else 60):
            text = f"{path}:{line}: {signature.name}, {lines} lines"
            (where_kernels if kernel else where).append((lines, text))

    def longest_first(found):
        return [text for _, text in sorted(found, reverse=True)]

    return [Measure("functions over 60 lines, %", percent(len(where), len(plain)), 3.0, longest_first(where)),
            Measure("kernels over 150 lines, %", percent(len(where_kernels), len(kernels)), 0.0,
                    longest_first(where_kernels))]


def many_parameters(tree):
    total, where = 0, []
    for path, line, _, signature in tree.functions():
        total += 1
        if len(signature.parameters) > 6:
            where.append(f"{path}:{line}: {signature.name}, {len(signature.parameters)} parameters")
    return Measure("functions over 6 parameters, %", percent(len(where), total), 1.0, where)


def repeated_windows(tree):
    """Share of windows of 8 lines seen before; comments, includes, blank lines, lone brackets left out."""
    first, where, total, repeated = {}, [], 0, 0
    for path, text in tree.text.items():
        lines = enumerate(cpp.without_comments(text).split("\n"), 1)
        lines = [(n, " ".join(line.split())) for n, line in lines if re.search(r"\w", line)]
        lines = [(n, line) for n, line in lines if not line.startswith(("#", "namespace"))]
        previous = -WINDOW
        for i in range(len(lines) - WINDOW + 1):
            key = "\n".join(line for _, line in lines[i:i + WINDOW])
            total += 1
            if key in first:
                repeated += 1
                if i - previous >= WINDOW:
                    where.append(f"{path}:{lines[i][0]}: as {first[key]}")
                    previous = i
            else:
                first[key] = f"{path}:{lines[i][0]}"
    return Measure(f"repeated {WINDOW}-line windows, %", percent(repeated, total), 3.0, where)


def include_graph(tree):
    graph = {}
    for path, text in tree.text.items():
        graph[path] = []
        for line, name, quoted in cpp.includes(text):
            beside = os.path.normpath(os.path.join(os.path.dirname(path), name))
            if quoted:
                graph[path].append((line, beside if beside in tree.text else os.path.normpath(name)))
    return graph


def include_cycles(graph):
    """Each cycle once, found by depth-first search."""
    state, stack, cycles = {}, [], []

    def visit(path):
        state[path] = "open"
        stack.append(path)
        for _, other in graph[path]:
            if other not in graph:
                continue
            if state.get(other) == "open":
                cycles.append(" → ".join(stack[stack.index(other):] + [other]))
            elif other not in state:
                visit(other)
        stack.pop()
        state[path] = "done"

    for path in graph:
        if path not in state:
            visit(path)
    return Measure("include cycles", len(cycles), 0, cycles)


def against_arrows(tree, graph):
    where = []
    for path, names in graph.items():
        parts = path.split(os.sep)
        if parts[0] != "phalanx" or len(parts) < 3:
            continue
        for line, name in names:
            to = name.split(os.sep)
            if to[0] in ("apps", "tests", "bench"):
                where.append(f"{path}:{line}: the library includes {name}")
            elif to[0] == "phalanx" and len(to) > 2 and to[1] not in tree.needs.get(parts[1], {parts[1]}):
                where.append(f"{path}:{line}: {parts[1]} may not know {to[1]} ({name})")
    return Measure("includes against the arrows", len(where), 0, where)


_EXEMPT = re.compile(r"""
      =\s*(?:default|delete)\s*$ | ^(?:friend|using|typedef|static_assert|extern\s+template)\b
    | \boverride\b | ~\w+\s*\( | \boperator\b | \bawait_(?:ready|suspend|resume)\b
    | ^(?:class|struct|enum(?:\s+class)?)\s+[\w:]+(?:\s*:\s*\w+)?$   # forward declaration
    | ^(?:[\w:&*<>,]+\s+)*\w+(?:<[^()]*>)?::~?\w+\s*\(                # a member, defined outside its class
    | ^(?:explicit\s+)?(\w+)\s*\((?:const\s+)?\1(?:<[^<>]*>)?\s*&&?          # copies and moves
    | ^[A-Z][A-Z0-9_]+\s*\( """, re.X | re.S)
_SPECIALISATION = re.compile(r"(?:class|struct)\s+[\w:]+\s*<")

_ACCESSOR = re.compile(r"\(\s*\)\s*(?:const)?\s*(?:noexcept)?$")
_ONE_MEMBER = re.compile(r"\{\s*return\s+\*?[\w.]+(?:->\w+)?(?:\(\))?;\s*\}")  # { return rank_; }
_CONVERSION = re.compile(r"^(?:explicit\s+)?(\w+)\s*\([^(),]*\)\s*:[^,]*$")   # Arg(bool v) : value_(v) {}


def declarations(path, tree):
    """(first line, last line of its head, text) of each public declaration that needs a comment."""
    code = tree.code[path]
    for item in tree.items[path]:
        head = " ".join(cpp.bare_head(item.head).split())
        if item.kind in ("declaration", "function"):
            body = code[item.body:item.end + 1] if item.body >= 0 else ""
            exempt = (_EXEMPT.search(head) or (_ACCESSOR.search(head) and _ONE_MEMBER.fullmatch(body)) or
                      (item.in_class and _CONVERSION.match(head) and re.fullmatch(r"\{\s*\}", body)))
        else:
            exempt = _SPECIALISATION.match(head)
        if item.public and head and not exempt:
            last = item.end if item.body < 0 else item.body
            yield cpp.line_of(code, item.start), cpp.line_of(code, last), head


def _covered(lines, bare, first, last):
    """A comment stands on the declaration's lines, or above the unbroken block of lines that it is in.
    The first block of a class is covered by the comment of the class."""
    if any("//" in lines[n] or "/*" in lines[n] for n in range(first - 1, last)):
        return True
    n, in_class_head = first - 2, False  # the line above, counted from 0
    while n >= 0 and bare[n].strip():
        line = bare[n].strip()
        if line.endswith("{"):
            if in_class_head or line.startswith(("namespace", "extern")):
                return False
            in_class_head = True
        elif in_class_head and line.endswith((";", "}", ":")):
            return False
        n -= 1
    above = lines[n].strip() if n >= 0 else ""
    return above.startswith(("//", "/*")) or above.endswith("*/")


def uncommented(tree):
    total, where = 0, []
    for path in tree.text:
        if not (path.startswith("phalanx" + os.sep) and path.endswith(".h")):
            continue
        lines = tree.text[path].split("\n")
        bare = cpp.without_comments(tree.text[path]).split("\n")
        for first, last, head in declarations(path, tree):
            total += 1
            if not _covered(lines, bare, first, last):
                where.append(f"{path}:{first}: {head[:60]}")
    return Measure("public declarations without a comment, %", percent(len(where), total), 20.0, where)


def wide_lines(tree):
    where = []
    for path in cpp.files(tree.root, cpp.FOLDERS + ("cmake", "scripts"), COLUMN_FILES):
        for number, line in enumerate(cpp.read(tree.root, path).split("\n"), 1):
            if len(line) > COLUMNS:
                where.append(f"{path}:{number}: {len(line)} columns")
    return Measure(f"lines over {COLUMNS} columns", len(where), 0, where)


def test_ratio(tree):
    """Non-blank lines of tests (scripts too, these style tools not) to those of library and command."""
    def count(folders, endings):
        chosen = [path for path in cpp.files(tree.root, folders, endings)
                  if not path.startswith(os.path.join("tests", "style"))]
        return sum(1 for path in chosen for line in cpp.read(tree.root, path).split("\n") if line.strip())

    tests = count(("tests",), cpp.CPP + (".py", ".sh"))
    source = count(("phalanx", "apps"), cpp.CPP)
    ratio = round(tests / source, 2) if source else 1.0
    return Measure("test lines : source lines", ratio, 0.5, [f"{tests} : {source}"], at_least=True)


def measure(root):
    tree = Tree(root)
    graph = include_graph(tree)
    return [longest(tree, "longest file, lines", 400, lambda path: not is_kernel(path)),
            longest(tree, "longest kernel file, lines", 600, is_kernel),
            *long_functions(tree), many_parameters(tree), repeated_windows(tree), include_cycles(graph),
            against_arrows(tree, graph), uncommented(tree), wide_lines(tree), test_ratio(tree)]


def tightened(measures, limits):
    """limits with each measure that improved moved towards its goal, and not past it."""
    new = {}
    for m in measures:
        best = max(m.value, m.goal) if not m.at_least else min(m.value, m.goal)
        old = limits.get(m.name, best)
        new[m.name] = max(old, best) if m.at_least else min(old, best)
    return new


def report(measures, limits):
    """Prints the table; returns the measures that are worse than their limits."""
    print(f"{'':42}{'now':>9}{'limit':>9}{'goal':>9}")
    failed = []
    for m in measures:
        limit = limits.get(m.name, m.goal)
        bad = m.worse_than(limit)
        failed += [m] if bad else []
        print(f"{m.name:42}{m.value:9g}{limit:9g}{m.goal:9g}{'  WORSE' if bad else ''}")
    for m in failed:
        print(f"\n{m.name}: {m.value:g}, the limit is {limits.get(m.name, m.goal):g}")
        for place in m.where[:20]:
            print(f"  {place}")
        if len(m.where) > 20:
            print(f"  … and {len(m.where) - 20} more")
    return failed


def main(arguments):
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=os.path.dirname(os.path.dirname(here)))
    parser.add_argument("--limits", default=None, help="default: ROOT/tests/style/limits.json")
    parser.add_argument("--update", action="store_true", help="tighten the limits to what was measured")
    options = parser.parse_args(arguments)
    path = options.limits or os.path.join(options.root, "tests", "style", "limits.json")
    limits = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            limits = json.load(f)
    measures = measure(options.root)
    failed = report(measures, limits)
    if options.update:
        with open(path, "w", encoding="utf-8") as f:
            json.dump(tightened(measures, limits), f, indent=2)
            f.write("\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
