"""Just enough C++ to measure it: comments and strings blanked, brackets matched, declarations found.

It reads formatted code (clang-format runs before it) and takes no part in compiling, so it may be
approximate: a construct that it does not know is left out of a count, never an error.
"""

import dataclasses
import os
import re

CPP = (".h", ".cc", ".cu", ".cuh")
FOLDERS = ("phalanx", "apps", "tests", "bench", "python", "examples")


def files(root, folders=FOLDERS, endings=CPP):
    """Paths, relative to root and sorted, of our files with these endings; style fixtures left out."""
    found = []
    for folder in folders:
        for where, dirs, names in os.walk(os.path.join(root, folder)):
            dirs[:] = [d for d in dirs if d not in ("fixtures", "__pycache__", "build")]
            found += [os.path.relpath(os.path.join(where, name), root)
                      for name in names if name.endswith(endings)]
    return sorted(found)


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as f:
        return f.read()


_LEXEME = re.compile(
    r"""//[^\n]*(?:\\\n[^\n]*)*            # comment to the end of the line
      | /\*.*?\*/                          # block comment
      | (?:u8|[uUL])?R"(?P<tag>[^(\s]*)\(.*?\)(?P=tag)"   # raw string
      | "(?:\\.|[^"\\\n])*"
      | (?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'  # not the separator in 1'000'000
    """, re.S | re.X)


def _blank(text):
    return re.sub(r"[^\n]", " ", text)


def without_comments(text):
    """The text, comments blanked; every character keeps its place."""
    return _LEXEME.sub(lambda m: _blank(m[0]) if m[0].startswith(("//", "/*")) else m[0], text)


def code_only(text):
    """The text; comments, insides of literals and preprocessor lines blanked; all keeps its place."""
    def blank(m):
        return _blank(m[0]) if m[0].startswith(("//", "/*")) else m[0][0] + _blank(m[0][1:-1]) + m[0][-1]

    text = _LEXEME.sub(blank, text)
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: _blank(m[0]), text, flags=re.M)


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def brackets(code):
    """{position of an opening bracket: position of its closing one} and the reverse, in one dict."""
    match, stack = {}, []
    pairs = {")": "(", "]": "[", "}": "{"}
    for i, c in enumerate(code):
        if c in "([{":
            stack.append(i)
        elif c in ")]}" and stack and code[stack[-1]] == pairs[c]:
            j = stack.pop()
            match[i], match[j] = j, i
    return match


def split_top(text, separator=","):
    """Splits at separators that stand outside all brackets, the angle ones too."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "([{<":
            depth += 1
        elif c in ")]}" or (c == ">" and text[i - 1:i] != "-"):
            depth -= 1
        elif c == separator and depth <= 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [p.strip() for p in parts if p.strip()]


@dataclasses.dataclass
class Item:
    """A declaration or definition at namespace or class scope."""
    kind: str           # function, declaration, class, enum
    head: str           # its text up to the body or semicolon
    start: int          # position of its first character
    end: int            # position of its closing brace or semicolon
    body: int = -1      # position of the opening brace, -1 without one
    public: bool = True  # outside private and protected sections and unnamed or detail namespaces
    in_class: bool = False


def _skip_angles(text, i):
    depth = 0
    while i < len(text):
        if text[i] == "<":
            depth += 1
        elif text[i] == ">" and text[i - 1] != "-":
            depth -= 1
            if depth == 0:
                return i + 1
        i += 1
    return i


def _skip_round(text, i):
    depth = 0
    while i < len(text):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        i += 1
        if depth == 0:
            return i
    return i


def bare_head(head):
    """The head without template<…>, attributes, requires(…): its first words say what it is."""
    head = head.strip()
    while True:
        if m := re.match(r"template\s*(?=<)", head):
            head = head[_skip_angles(head, m.end()):].lstrip()
        elif m := re.match(r"(?:requires|alignas|__launch_bounds__|__attribute__)\s*(?=\()", head):
            head = head[_skip_round(head, m.end()):].lstrip()
        elif m := re.match(r"\[\[.*?\]\]\s*", head, re.S):
            head = head[m.end():]
        else:
            break
    head = re.sub(r"\[\[.*?\]\]", " ", head, flags=re.S)
    return re.sub(r"\b(?:__launch_bounds__|alignas|explicit|decltype)\s*\([^()]*\)", " ", head)


def _flat(text):
    """The text with everything inside round and square brackets left out (the brackets stay)."""
    out, depth = [], 0
    for c in text:
        if c in ")]":
            depth -= 1
        if depth <= 0:
            out.append(c)
        if c in "([":
            depth += 1
    return "".join(out)


def _classify(head):
    bare = bare_head(head)
    if re.match(r"(?:inline\s+)?namespace\b", bare) or re.match(r'extern\s*"\s*"?\s*"?$', bare):
        return "namespace"
    if re.match(r"(?:typedef\s+)?enum\b", bare):
        return "enum"
    if m := re.match(r"(?:typedef\s+)?(?:class|struct|union)\s+[\w:]+\s*", bare):
        rest = bare[_skip_angles(bare, m.end()):] if bare[m.end():m.end() + 1] == "<" else bare[m.end():]
        if "(" not in re.sub(r"<.*>", "", rest, flags=re.S) and "=" not in rest:
            return "class"  # also a specialisation such as FunctionRef<R(Args...)>
    elif re.match(r"(?:struct|union)\s*$", bare):
        return "class"
    flat = re.sub(r"\boperator\s*[^\s\w(]+", "operator", _flat(bare))
    if re.search(r"(?<![=!<>+\-*/%&|^])=(?!=)", flat) or "(" not in flat:
        return "initializer"
    after = flat[flat.index(")") + 1:] if ")" in flat else ""
    in_member_list = re.search(r"(?<!:):(?!:)", after)
    if in_member_list and re.search(r"[\w>]\s*$", flat):
        return "initializer"
    return "function"


def items(code):
    """All declarations and definitions of a file (code_only text), nested classes' members too."""
    match, out = brackets(code), []

    def scope(start, end, in_class, public):
        i, head = start, None
        visible = public
        while i < end:
            c = code[i]
            if c.isspace():
                i += 1
                continue
            if head is None:
                if c in ";}":
                    i += 1
                    continue
                head = i
            if c in "([" and i in match:
                i = match[i] + 1
            elif c == ";":
                out.append(Item("declaration", code[head:i], head, i, public=visible, in_class=in_class))
                i, head = i + 1, None
            elif c == ":" and (m := re.fullmatch(r"(public|private|protected)\s*", code[head:i])):
                visible = public and m[1] == "public"
                i, head = i + 1, None
            elif c == "{" and i in match:
                close, text = match[i], code[head:i]
                kind = _classify(text)
                if kind == "namespace":
                    hidden = re.search(r"namespace\s*$|\b(?:detail|internal)\b|\w*HWY_NAMESPACE", text)
                    scope(i + 1, close, False, visible and not hidden)
                    head = None
                elif kind != "initializer":
                    out.append(Item(kind, text, head, close, body=i, public=visible, in_class=in_class))
                    if kind == "class":
                        default = not re.match(r"class\b", bare_head(text))
                        inner_public = visible
                        scope_class(i + 1, close, inner_public, default)
                    head = None
                i = close + 1
            else:
                i += 1

    def scope_class(start, end, public, first_public):
        if first_public:
            scope(start, end, True, public)
            return
        label = re.compile(r"\b(?:public|private|protected)\s*:(?!:)").search(code, start, end)
        split = label.start() if label else end
        scope(start, split, True, False)
        scope(split, end, True, public)

    scope(0, len(code), False, True)
    return out


@dataclasses.dataclass
class Signature:
    name: str
    returns: str
    parameters: list


def signature(head):
    """Name, return type and parameters of a function's head; None if it is not one."""
    bare = re.sub(r"\boperator\s*\(\s*\)", "operator_call", bare_head(head))
    bare = re.sub(r"\bnoexcept\s*\([^()]*\)", "noexcept", bare)
    for m in re.finditer(r"\(", bare):
        before = bare[:m.start()].rstrip()
        name = re.search(r"((?:\w+(?:<[^()<>]*>)?::)*~?(?:operator\s*[^\s\w(]+|operator\s+[\w:]+|\w+))$",
                         before)
        if not name:
            continue
        close = _skip_round(bare, m.start())
        inside = bare[m.start() + 1:close - 1].strip()
        parameters = [] if inside in ("", "void") else split_top(inside)
        returns = before[:name.start()].strip()
        if trailing := re.match(r"[\w\s]*->\s*([^{;]+)", bare[close:]):
            returns = trailing[1].strip()
        return Signature(name[1], returns, parameters)
    return None


def includes(text):
    """[(line number, name, quoted?)] of a file's includes."""
    pattern = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"\n]+)"|<([^>\n]+)>)', re.M)
    return [(line_of(text, m.start(1) if m[1] else m.start(2)), m[1] or m[2], bool(m[1]))
            for m in pattern.finditer(without_comments(text))]
