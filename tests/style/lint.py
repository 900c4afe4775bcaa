#!/usr/bin/env python3
"""Rules of the house that a compiler does not know. Prints file:line: rule: reason; fails when there is one.

  lint.py [--root DIR]

One line may be excused, with a reason:  // lint-allow(rule): why it is right here
"""

import argparse
import dataclasses
import os
import re
import sys

import cpp

# Objects that outlive every task that sees them; a coroutine may hold these by reference, and nothing else.
LONG_LIVED = re.compile(r"^(?:const\s+)?(?:[\w:]+::)?"
                        r"(?:Tape|Group|Mesh|ParameterStore|Transport|\w*Config)\s*&$")

ENVIRONMENT_FILES = re.compile(r"^phalanx/comm/launch[^/]*\.cc$")  # the ranks that launchers hand over
RAW_MEMORY_FILES = re.compile(r"^phalanx/(?:base/frame_pool|tensor/\w*allocator)[^/]*\.(?:cc|cu|h)$")
GENERATION = re.compile(r"_v\d+$|^(?:legacy|new|old|deprecated)$|^(?:new|old|legacy)_|_(?:old|new|legacy)$")
PUBLISHED_VERSIONS = re.compile(r"^(?:\w*_)?deepseek_v\d", re.I)  # names of the field, not ours

HEAVY = {
    "nlohmann/": "JSON", "toml++/": "TOML", "CLI/": "the command line", "fmt/": "fmt", "spdlog/": "logging",
    "mpi.h": "MPI", "oneapi/dnnl/": "oneDNN", "dnnl": "oneDNN", "cblas": "BLAS", "openblas": "BLAS",
    "cuda": "CUDA", "cublas": "cuBLAS", "cudnn": "cuDNN", "nccl": "NCCL",
    "cutlass/": "CUTLASS", "cute/": "CUTLASS",
    "pcre2": "PCRE2", "utf8proc": "utf8proc", "hwy/": "Highway", "hwloc": "hwloc", "xxhash": "xxHash",
}


@dataclasses.dataclass
class Finding:
    path: str
    line: int
    rule: str
    reason: str

    def __str__(self):
        return f"{self.path}:{self.line}: {self.rule}: {self.reason}"


class File:
    def __init__(self, root, path):
        self.path = path.replace(os.sep, "/")
        self.text = cpp.read(root, path)
        self.code = cpp.code_only(self.text)
        self.match = cpp.brackets(self.code)
        self.library = self.path.startswith("phalanx/")

    def at(self, position, rule, reason):
        return Finding(self.path, cpp.line_of(self.code, position), rule, reason)

    def matches(self, pattern, rule, reason):
        for m in re.finditer(pattern, self.code):
            yield self.at(m.start(), rule, reason)


# --- coroutines ---

@dataclasses.dataclass
class Statement:
    awaits: list = dataclasses.field(default_factory=list)   # positions of co_await
    braces: list = dataclasses.field(default_factory=list)   # positions where {…} builds a temporary
    conditional: bool = False                                # holds a ?


_BLOCK_WORDS = re.compile(r"\b(?:else|do|try|extern)\s*$")
_AWAIT = re.compile(r"(?<!\w)co_await\b")
_TYPE_WORDS = re.compile(r"^\s*(?:template\s*<.*>\s*)?(?:struct|class|union|enum|namespace)\b[^=;()]*$", re.S)


def _brace_kind(code, match, brace, statement_start):
    """What a '{' opens: "lambda", "block", "requires" or "value"."""
    before = code[statement_start:brace]
    tail = before.rstrip()
    if not tail or tail[-1] in ";{}:" or _BLOCK_WORDS.search(tail) or _TYPE_WORDS.match(before):
        return "block"
    if tail.endswith("requires"):
        return "requires"
    if tail.endswith("]"):
        opening = match.get(statement_start + len(tail) - 1, 0)
        return "block" if code[opening:opening + 2] == "[[" else "lambda"
    # (parameters) mutable noexcept -> Type {
    m = re.search(r"\)\s*(?:(?:mutable|noexcept|constexpr|const|override|final)\s*)*(?:->\s*[\w:<>,&*\s]+)?$",
                  tail)
    if m:
        opening = match.get(statement_start + m.start(), -1)
        lead = code[statement_start:opening].rstrip() if opening >= statement_start else ""
        if lead.endswith("]") or re.search(r"\]\s*<[^{}]*>$", lead):
            return "lambda"
        return "requires" if re.search(r"\brequires$", lead) else "block"
    return "value"


def statements(code, match, start, end):
    """The statements between two positions; lambda bodies and blocks inside give statements of their own."""
    out, current = [], Statement()
    begin, i = start, start
    depth = 0

    def finish(position):
        nonlocal current, begin
        if current.awaits:
            out.append(current)
        current, begin = Statement(), position

    while i < end:
        c = code[i]
        if c in "([":
            depth += 1
        elif c in ")]":
            depth -= 1
        elif c == ";":
            finish(i + 1)
        elif c == "{" and i in match:
            kind = _brace_kind(code, match, i, begin)
            if kind == "block" and depth <= 0:
                finish(i + 1)
            elif kind == "value":
                current.braces.append(i)
            else:
                if kind != "requires":
                    out += statements(code, match, i + 1, match[i])
                i = match[i]
        elif c == "?":
            current.conditional = True
        elif c == "}" and depth <= 0 and not _closes_value(current, match, i):
            finish(i + 1)
        elif c == "c" and _AWAIT.match(code, i):
            current.awaits.append(i)
            i += len("co_await") - 1
        i += 1
    finish(end)
    return out


def _closes_value(statement, match, i):
    return match.get(i) in statement.braces


def await_rules(file):
    for s in statements(file.code, file.match, 0, len(file.code)):
        first = s.awaits[0]
        for position in s.awaits[1:]:
            yield file.at(position, "one-await",
                          "one co_await a statement, so that the places where others may run can be counted")
        if s.conditional:
            yield file.at(first, "await-conditional",
                          "g++ 12 destroys what a conditional with a co_await holds twice: write an if")
        if s.braces:
            yield file.at(first, "await-aggregate",
                          "g++ 12 destroys a braced temporary of a co_await statement twice: name it first")


def parameter_rules(file):
    """Functions, declarations and lambdas that return a Task."""
    heads = [(item.start, cpp.signature(item.head)) for item in cpp.items(file.code)
             if item.kind in ("function", "declaration")]
    found = [(start, s.parameters) for start, s in heads if s and _is_task(s.returns)]
    for m in re.finditer(r"\]\s*\(", file.code):
        close = file.match.get(m.end() - 1)
        if close and (after := re.match(r"[\w\s]*->\s*([\w:]+\s*<?)", file.code[close + 1:close + 200])):
            if _is_task(after[1]):
                found.append((m.start(), cpp.split_top(file.code[m.end():close])))
    for start, parameters in found:
        for parameter in parameters:
            kind = re.sub(r"\s*=.*", "", parameter, flags=re.S)
            kind = re.sub(r"&\s*\w+$", "&", re.sub(r"\s+", " ", kind)).strip()
            if (kind.endswith("&") and not LONG_LIVED.match(kind)) or "initializer_list" in kind:
                yield file.at(start, "coroutine-reference",
                              f"\"{parameter}\" may be gone when the coroutine goes on: take it by value")


def _is_task(returns):
    words = re.sub(r"\b(?:virtual|static|inline|constexpr|friend|auto)\b", "", returns).strip()
    return re.match(r"(?:[\w]+::)*Task\s*(?:<|$)", words) is not None


# --- what may not be called or included ---

def environment_rule(file):
    if not file.path.startswith("tests/") and not ENVIRONMENT_FILES.match(file.path):
        yield from file.matches(r"\b(?:secure_)?getenv\b|\b(?:setenv|putenv|unsetenv)\s*\(", "environment",
                                "no environment variable changes behaviour: make it a configuration key")


def memory_rule(file):
    if RAW_MEMORY_FILES.match(file.path):
        return
    reason = "owners are values or unique_ptr: no raw new or delete"
    yield from file.matches(r"(?<!operator )(?<!operator)\bnew\b(?=\s*[\w:(])", "raw-memory", reason)
    for m in re.finditer(r"\bdelete\b", file.code):
        if not re.search(r"(?:=|\boperator)\s*$", file.code[:m.start()]):
            yield file.at(m.start(), "raw-memory", reason)


def output_rule(file):
    if file.library:
        yield from file.matches(r"\b(?:v?f?printf|puts|fputs|putchar|perror)\s*\(|"
                                r"\bstd::(?:cout|cerr|clog)\b|"
                                r"\b(?:fmt|std)::print(?:ln)?\b", "print",
                                "library code never prints: throw, log or return it")
        yield from file.matches(r"(?<![\w.>])(?:_exit|_Exit|quick_exit|exit)\s*\(", "exit",
                                "library code never ends the process: throw")


def header_rule(file):
    if not file.library or not file.path.endswith(".h") or file.path.endswith("-inl.h"):
        return
    for line, name, _ in cpp.includes(file.text):
        for prefix, what in HEAVY.items():
            if name.startswith(prefix):
                yield Finding(file.path, line, "heavy-header",
                              f"<{name}> ({what}) belongs in one .cc: all who include this header would pay")
                break


# --- words ---

def todo_rule(file):
    for m in re.finditer(r"\b(TODO|FIXME|XXX|HACK)\b(?!\(\w[\w .-]*\): \S)", file.text):
        yield Finding(file.path, cpp.line_of(file.text, m.start()), "todo",
                      f"{m[1]} needs an owner and a reason, {m[1]}(name): why; or do it now")


def name_rule(file):
    reason = "replace what is old, git remembers it"
    for part in file.path.split("/"):
        stem = part.split(".")[0]
        if GENERATION.search(stem) and not PUBLISHED_VERSIONS.match(stem):
            yield Finding(file.path, 1, "generation", f"\"{part}\" names a generation: {reason}")
    for m in re.finditer(r"\b\w+_[vV]\d+\b|\b\w*[lL]egacy\w*\b", file.code):
        if not PUBLISHED_VERSIONS.match(m[0]):
            yield file.at(m.start(), "generation", f"\"{m[0]}\" names a generation: {reason}")


RULES = (await_rules, parameter_rules, environment_rule, memory_rule, output_rule, header_rule, todo_rule,
         name_rule)


def excused(text):
    """{(line, rule)} of the lint-allow comments; one that stands alone excuses the line below."""
    found = set()
    for number, line in enumerate(text.split("\n"), 1):
        for m in re.finditer(r"//\s*lint-allow\(([\w-]+)\): \S", line):
            found.add((number + (1 if line.strip().startswith("//") else 0), m[1]))
    return found


def lint(root):
    """All findings in the tree at root, in order of file and line."""
    findings = []
    for path in cpp.files(root):
        file = File(root, path)
        allowed = excused(file.text)
        for rule in RULES:
            findings += [f for f in rule(file) if (f.line, f.rule) not in allowed]
    return sorted(findings, key=lambda f: (f.path, f.line, f.rule))


def main(arguments):
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=os.path.dirname(os.path.dirname(here)))
    findings = lint(parser.parse_args(arguments).root)
    for finding in findings:
        print(finding)
    print(f"lint: {len(findings)} findings" if findings else "lint: nothing to say")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
