#!/usr/bin/env python3
"""Dispatch and combine between two hosts: network namespaces of this machine, half of its cores each, joined
by a virtual cable that is as slow as one wants. Needs root, iproute2, mpirun and the release build.

  python3 bench/ep_hosts.py ways [--cable none,10gbit,1gbit] [--tokens 1,8,16,32,128] [--json FILE]
  python3 bench/ep_hosts.py overlap [--cable none,2gbit,1gbit] [--rounds 3] [--json FILE]

ways: two ranks a host, bf16 rows of 7168, top 8 of 64 experts, on one level and on two.
overlap: one rank a host, an expert layer of 2,048 tokens of 1,024 in f32, top 2 of 8 experts of 128: two
microbatches one after the other and in turns (`phalanx bench ep --mode overlap`); the round of the median of
what is saved.
"""
import argparse
import json
import os
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(ROOT, "tests"))
from two_hosts import Hosts, why_not  # noqa: E402

PHALANX = os.path.join(ROOT, "build/release/bin/phalanx")


def rows(cable, ranks_a_host, *options):
    """Those of the table that `phalanx bench ep` makes on both hosts."""
    hosts = Hosts()
    try:
        if cable != "none":
            hosts.slow_down(cable)
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            command = [PHALANX, "bench", "ep", *options, "--json", out.name]
            done = hosts.mpirun(ranks_a_host, *command, deadline=900)
            if done.returncode != 0:
                sys.exit(done.stdout + done.stderr)
            return json.load(out)["rows"]
    finally:
        hosts.close()


BOTH = ("--mode", "throughput,two-level", "--ranks-of-node", "2")


def ways(args):
    """Microseconds on one level and on two, by cable, tokens and operation."""
    for cable in args.cable or ["none", "10gbit", "1gbit"]:
        print(f"{cable} …", file=sys.stderr)
        us = {}
        for row in rows(cable, 2, *BOTH, "--tokens", args.tokens):
            us.setdefault((row["tokens"], row["operation"]), {})[row["mode"]] = row["us"]
        for (tokens, operation), of in us.items():
            one, two = of["throughput"], of["two-level"]
            yield {"cable": cable, "tokens": tokens, "operation": operation, "one level, us": round(one),
                   "two levels, us": round(two), "times faster": round(one / two, 2)}


LAYER = ("--mode", "overlap", "--tokens", "2048", "--width", "1024", "--expert-width", "128",
         "--top-k", "2", "--experts", "8", "--runs", "7")


def overlap(args):
    """Milliseconds of each part, by cable."""
    for cable in args.cable or ["none", "2gbit", "1gbit"]:
        measured = []
        for i in range(args.rounds):
            print(f"{cable}, round {i + 1} …", file=sys.stderr)
            measured.append({row["operation"]: row["us"] / 1e3 for row in rows(cable, 1, *LAYER)})
        measured.sort(key=lambda ms: ms["overlapped"] / ms["sequential"])
        ms = measured[len(measured) // 2]
        saved = ms["sequential"] - ms["overlapped"]
        yield {"cable": cable, **{f"{name}, ms": round(value, 1) for name, value in ms.items()},
               "saved, %": round(100 * saved / ms["sequential"], 1),
               "of the experts' time, %": round(50 * saved / ms["experts"], 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ways", "overlap"])
    parser.add_argument("--cable", type=lambda text: text.split(","))
    parser.add_argument("--tokens", default="1,8,16,32,64,128,512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()
    reason = why_not(PHALANX) if os.path.exists(PHALANX) else f"build {PHALANX} first (make bench)"
    if reason:
        sys.exit(f"no two hosts: {reason}")
    table = list({"ways": ways, "overlap": overlap}[args.what](args))
    print(" | ".join(table[0]))
    for row in table:
        print(" | ".join(map(str, row.values())))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"name": f"ep between hosts: {args.what}", "rows": table}, f, indent=1)


if __name__ == "__main__":
    main()
