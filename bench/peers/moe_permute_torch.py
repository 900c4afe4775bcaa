"""PyTorch's time for what `phalanx_bench_cuda_moe` calls order_by_expert, permute and unpermute.

    python3 bench/peers/moe_permute_torch.py

Rows are bf16. Combine is timed twice: gather and a batched product, and index_add_ of weighted rows (which
sums in bf16, in no fixed order).
"""

import torch

SHAPES = [(32768, 7168, 256, 8), (8192, 2048, 64, 6), (16384, 1024, 16, 2)]


def milliseconds(f):
    """The median of 11 calls after 3."""
    times = []
    for i in range(-3, 11):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        f()
        end.record()
        torch.cuda.synchronize()
        if i >= 0:
            times.append(begin.elapsed_time(end))
    return sorted(times)[5]


def measure(tokens, width, experts, top_k):
    x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
    weights, chosen = torch.rand(tokens, experts, device="cuda").topk(top_k)
    slots = chosen.flatten().argsort(stable=True)
    places = torch.empty_like(slots)
    places[slots] = torch.arange(slots.numel(), device="cuda")
    token = slots // top_k
    rows = x.index_select(0, token)
    by_row = weights.flatten()[slots].to(torch.bfloat16)[:, None]
    narrow = weights.to(torch.bfloat16)[:, None, :]

    def product():
        gathered = rows.index_select(0, places).view(tokens, top_k, width)
        return torch.bmm(narrow, gathered)

    return {
        "order (stable argsort)": milliseconds(lambda: chosen.flatten().argsort(stable=True)),
        "permute (index_select)": milliseconds(lambda: x.index_select(0, token)),
        "combine (index_select, bmm)": milliseconds(product),
        "combine (index_add_)": milliseconds(lambda: torch.zeros_like(x).index_add_(0, token, rows * by_row)),
    }


def main():
    print(f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}")
    for shape in SHAPES:
        for name, ms in measure(*shape).items():
            tokens, width, experts, top_k = shape
            print(f"[{tokens}, {width}], top {top_k} of {experts}: {name}: {ms:.3f} ms")


if __name__ == "__main__":
    main()
