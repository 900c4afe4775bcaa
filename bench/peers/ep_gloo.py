#!/usr/bin/env python3
"""Dispatch and combine as torch.distributed (gloo) does them: index_select, all_to_all_single, index_add_.

  python3 bench/peers/ep_gloo.py --ranks 2

bf16 rows of 7168, top 8 of 64 experts, on processes of cores ÷ ranks threads. Prints lines for
phalanx_bench_ep: tokens, operation, and seconds, the median over runs of the slowest rank's. Rows alone are
exchanged.
"""
import argparse
import os
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WIDTH, TOP_K, EXPERTS, RUNS = 7168, 8, 64, 9


def median_of_slowest(operation):
    seconds = []
    for i in range(-2, RUNS):
        dist.barrier()
        begin = time.perf_counter()
        operation()
        mine = torch.tensor([time.perf_counter() - begin], dtype=torch.float64)
        dist.all_reduce(mine, op=dist.ReduceOp.MAX)
        if i >= 0:
            seconds.append(mine.item())
    return statistics.median(seconds)


class Exchange:
    def __init__(self, tokens, rank, ranks):
        random = torch.Generator().manual_seed(rank)
        self.x = torch.rand((tokens, WIDTH), generator=random).to(torch.bfloat16)
        self.idx = torch.rand((tokens, EXPERTS), generator=random).argsort(1)[:, :TOP_K]
        self.ranks = ranks

    def dispatch(self):
        goes = torch.zeros((self.x.shape[0], self.ranks), dtype=torch.bool)
        goes.scatter_(1, self.idx // (EXPERTS // self.ranks), True)
        counts = goes.sum(0)
        received = torch.empty_like(counts)
        dist.all_to_all_single(received, counts)
        self.tokens = goes.t().nonzero()[:, 1]
        self.sent, self.received = counts.tolist(), received.tolist()
        self.rows = self.exchange(self.x.index_select(0, self.tokens), self.sent, self.received)

    def combine(self):
        back = self.exchange(self.rows, self.received, self.sent)
        out = torch.zeros(self.x.shape, dtype=torch.float32)
        out.index_add_(0, self.tokens, back.float())
        return out.to(torch.bfloat16)

    @staticmethod
    def exchange(rows, sent, received):
        out = torch.empty((sum(received), WIDTH), dtype=torch.bfloat16)
        dist.all_to_all_single(out.view(torch.uint8), rows.view(torch.uint8), received, sent)
        return out


def run(rank, ranks):
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    for tokens in (1024, 4096):
        exchange = Exchange(tokens, rank, ranks)
        for name in ("dispatch", "combine"):
            seconds = median_of_slowest(getattr(exchange, name))
            if rank == 0:
                print(f"{tokens} {name} {seconds:.9g}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args()
    mp.spawn(run, args=(args.ranks,), nprocs=args.ranks)
