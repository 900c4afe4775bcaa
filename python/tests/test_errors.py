"""What a caller gets wrong is an exception that names the argument, and the ranks go on."""

import kinds
import numpy as np
import pytest
from worlds import Case

import phalanx
import phalanx.deep_ep as deep_ep

T, H, K, E = 6, 8, 2, 4


class Arguments:
    """What dispatch takes, right, for a test to make wrong."""

    def __init__(self, buffer, kind=kinds.Numpy):
        self.kind = kind
        self.topk_idx = kind.make(np.arange(T * K).reshape(T, K) % E, "int64")
        self.x = kind.make(np.ones((T, H)), "float32")
        self.topk_weights = kind.make(np.ones((T, K)), "float32")
        layout = buffer.get_dispatch_layout(self.topk_idx, E)
        self.num_tokens_per_rank, _, self.num_tokens_per_expert, self.is_token_in_rank, _ = layout

    def __call__(self, **changed):
        names = ("x", "topk_idx", "topk_weights", "num_tokens_per_rank", "num_tokens_per_expert",
                 "is_token_in_rank")
        return {**{name: getattr(self, name) for name in names}, **changed}


WRONG = [
    ("x", lambda a: [[1.0]], "x has 1 parts"),
    ("x", lambda a: "rows", "x is a str"),
    ("x", lambda a: a.x[0], "x has shape"),
    ("x", lambda a: a.x[:3], "topk_idx|is_token_in_rank"),
    ("x", lambda a: a.kind.make(np.ones((H, T)), "float32").T, "x is not contiguous"),
    ("topk_idx", lambda a: a.kind.make(np.zeros((T, K)), "int32"), "topk_idx has dtype"),
    ("topk_idx", lambda a: a.topk_idx[:, :1] + 1, "topk_weights has shape"),
    ("topk_idx", lambda a: a.topk_idx + E, "rank 0.*token 0.*expert 4"),
    ("topk_idx", lambda a: a.topk_idx - 2, "rank 0.*token 0.*expert -2"),
    ("topk_idx", lambda a: a.topk_idx * 0, "does not fit topk_idx"),
    ("topk_weights", lambda a: a.kind.make(np.ones((T, K)), "float16"), "topk_weights has dtype"),
    ("topk_weights", lambda a: a.topk_weights[:3], "topk_weights has shape"),
    ("num_tokens_per_rank", lambda a: None, "num_tokens_per_rank is None"),
    ("num_tokens_per_rank", lambda a: a.num_tokens_per_rank + 1, "num_tokens_per_rank does not fit"),
    ("num_tokens_per_expert", lambda a: a.num_tokens_per_expert[:3], "3 experts, which 2 ranks do not"),
    ("is_token_in_rank", lambda a: a.is_token_in_rank[:, :1], "is_token_in_rank"),
    ("num_tokens_per_rdma_rank", lambda a: a.num_tokens_per_rank, "num_tokens_per_rdma_rank"),
    ("expert_alignment", lambda a: 0, "expert_alignment is 0"),
    ("num_worst_tokens", lambda a: -1, "num_worst_tokens is -1"),
    ("config", lambda a: 20, "config is a int"),
    ("previous_event", lambda a: 3, "previous_event is a int"),
    ("handle", lambda a: (1, 2), "topk_idx and topk_weights must be None"),
]


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.name)
def test_wrong_arguments_of_dispatch(kind):
    def rank(group):
        buffer = deep_ep.Buffer(group)
        arguments = Arguments(buffer, kind)
        for name, make, says in WRONG:
            with pytest.raises(phalanx.Error, match=says):
                buffer.dispatch(**arguments(**{name: make(arguments)}))
        with pytest.raises(phalanx.ArgumentError, match="handle is a tuple"):
            buffer.dispatch(arguments.x, handle=(1, 2))
        # nothing was sent, so the ranks still agree
        got = buffer.dispatch(**arguments())
        for x, says in ((got[0][:-1], "x has 5 rows"), (kind.make(np.ones((1, 1)), "int64"), "x has dtype")):
            with pytest.raises(phalanx.ArgumentError, match=says):
                buffer.combine(x, got[4])
        with pytest.raises(phalanx.ArgumentError, match="topk_weights has shape"):
            buffer.combine(got[0], got[4], topk_weights=got[2][:1])
        with pytest.raises(phalanx.Error, match="x has 3 rows"):
            buffer.dispatch(arguments.x[:3], handle=got[4])
        group.barrier()

    phalanx.run_threads(2, rank)


def test_mistake_of_one_rank_is_an_error_on_all():
    """The same text everywhere, and the buffer works on."""
    def rank(group):
        buffer = deep_ep.Buffer(group)
        arguments = Arguments(buffer)
        wrong = arguments.topk_idx.copy()
        wrong[3, 1] = E + 2
        given = wrong if group.rank() == 1 else arguments.topk_idx
        with pytest.raises(phalanx.Error) as caught:
            buffer.dispatch(**arguments(topk_idx=given))
        assert buffer.dispatch(**arguments())[3] == [6, 6]
        return str(caught.value)

    said = phalanx.run_threads(2, rank)
    assert said[0] == said[1] and "rank 1" in said[0] and "token 3" in said[0] and "6" in said[0], said


def test_checked_buffers_look_closer():
    def rank(group):
        plain, checked = deep_ep.Buffer(group), deep_ep.Buffer(group, checked=True)
        arguments = Arguments(plain)
        twice = arguments.topk_idx.copy()
        twice[2] = 1
        layout = plain.get_dispatch_layout(twice, E)
        names = {"num_tokens_per_rank": layout[0], "num_tokens_per_expert": layout[2],
                 "is_token_in_rank": layout[3]}
        plain.dispatch(**arguments(topk_idx=twice, **names))
        with pytest.raises(phalanx.Error, match="token 2.*expert 1"):
            checked.dispatch(**arguments(topk_idx=twice, **names))
        weights = arguments.topk_weights.copy()
        weights[4, 1] = np.nan
        with pytest.raises(phalanx.Error, match="token 4"):
            checked.dispatch(**arguments(topk_weights=weights))
        assert checked.dispatch(**arguments())[3] == [6, 6]

    phalanx.run_threads(2, rank)


def test_foreign_handles():
    """A handle of another rank, or of another world, is refused."""
    handles = {}

    def rank(group):
        buffer = deep_ep.Buffer(group)
        got = buffer.dispatch(**Arguments(buffer)())
        handles[group.rank()] = got[4]
        group.barrier()
        with pytest.raises(phalanx.Error, match="handle: it is of another group"):
            buffer.combine(got[0], handles[1 - group.rank()])
        group.barrier()
        assert (buffer.combine(got[0], got[4])[0] == deep_ep.Buffer(group).combine(got[0], got[4])[0]).all()

    phalanx.run_threads(2, rank)
    old = handles[0]

    def later(group):
        buffer = deep_ep.Buffer(group)
        got = buffer.dispatch(**Arguments(buffer)())
        with pytest.raises(phalanx.Error, match="handle: it is of another group"):
            buffer.combine(got[0], old)

    phalanx.run_threads(2, later)


def test_ranks_do_not_divide_the_experts():
    def rank(group):
        with pytest.raises(phalanx.Error, match="does not divide 4 experts"):
            deep_ep.Buffer(group).get_dispatch_layout(np.zeros((1, 1), np.int64), 4)

    phalanx.run_threads(3, rank)


def test_worst_tokens_too_few():
    def rank(group):
        buffer = deep_ep.Buffer(group)
        with pytest.raises(phalanx.Error, match="rank 0 has room for 1 rows at worst"):
            buffer.dispatch(**Arguments(buffer)(num_worst_tokens=1))

    phalanx.run_threads(2, rank)


def test_groups_that_are_none():
    with pytest.raises(phalanx.ArgumentError, match="group and comm are None"):
        deep_ep.Buffer(None)
    with pytest.raises(phalanx.ArgumentError, match="group is a int"):
        deep_ep.Buffer(3)
    with pytest.raises(phalanx.Error, match="a world of 0 ranks"):
        phalanx.run_threads(0, print)


def test_masks_after_a_refused_low_latency_dispatch():
    """Sizes that were refused leave no buffer behind, whose masks would be looked for."""
    def rank(group):
        buffer = deep_ep.Buffer(group, enable_shrink=True)
        for _ in range(2):
            with pytest.raises(phalanx.Error, match="max_tokens 0"):
                buffer.low_latency_dispatch(np.ones((0, H), np.float32), np.zeros((0, K), np.int64), 0, E,
                                            use_fp8=False)
            with pytest.raises(phalanx.Error, match="no low-latency dispatch yet"):
                buffer.low_latency_clean_mask_buffer()

    phalanx.run_threads(1, rank)


def test_torch_specials():
    """Tensors that need gradients are taken as values; other devices and layouts are refused."""
    if kinds.torch is None:
        pytest.skip("torch is not there")
    torch = kinds.torch

    def rank(group):
        buffer = deep_ep.Buffer(group)
        arguments = Arguments(buffer, kinds.Torch)
        got = buffer.dispatch(**arguments(x=arguments.x.clone().requires_grad_()))
        assert not got[0].requires_grad
        with pytest.raises(phalanx.ArgumentError, match="x is on meta"):
            buffer.dispatch(**arguments(x=arguments.x.to("meta")))
        with pytest.raises(phalanx.ArgumentError, match="x is on cpu .torch.sparse"):
            buffer.dispatch(**arguments(x=arguments.x.to_sparse()))
        assert torch.equal(buffer.combine(got[0], got[4])[0], arguments.x)  # both experts are on one rank

    phalanx.run_threads(2, rank)


def test_read_only_input():
    case = Case.random(np.random.default_rng(0), 2)

    def rank(group):
        buffer = deep_ep.Buffer(group)
        arguments = Arguments(buffer)
        arguments.x.setflags(write=False)
        got = buffer.dispatch(**arguments())
        got[0][:] = 3  # results can be written
        assert (buffer.combine(got[0], got[4])[0] == 3).all()

    assert case.ranks == phalanx.run_threads(2, lambda group: group.size())[0]
    phalanx.run_threads(2, rank)
