"""Windows of packed documents against a slow version that really joins and cuts all documents."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sani.text.framing import Framing
from sani.text.packing import framed_windows
from sani.text.tokens import Encoded


def documents(lengths: list[int]) -> list[Encoded]:
    """Return documents of these lengths in which no token stands twice."""
    items: list[Encoded] = []
    tokens = 0
    for number, length in enumerate(lengths):
        ids = list(range(1 + tokens, 1 + tokens + length))
        items.append(
            Encoded(
                number, ids, [], [], [], previous=items[-1] if items else None, tokens_before=tokens
            )
        )
        tokens += length
    return items


def blocks(items: list[Encoded], framing: Framing) -> list[list[int]]:
    """Join all documents and cut the result."""
    stream: list[int] = []
    for number, item in enumerate(items):
        stream += [*(framing.prefix if number else ()), *item.ids]
    cuts = [0, *range(framing.offset or framing.block, len(stream), framing.block), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(cuts) if a < b]


def test_a_text_cut_out_of_its_document_begins_a_block() -> None:
    """As the attacks ask for an occurrence behind a short context."""
    cut = Encoded(7, list(range(10)), [], [], [])
    framed = framed_windows(cut, Framing("blocks", (0,), block=8, offset=3), context_tokens=99)
    assert [(each.window.start, each.window.end) for each in framed] == [(0, 8), (8, 10)]
    assert [each.before for each in framed] == [(), ()]


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    prefix=st.sampled_from([(), (0,), (0, 0)]),
    block=st.integers(3, 30),
    data=st.data(),
)
def test_windows_are_those_of_the_joined_documents(
    lengths: list[int], prefix: tuple[int, ...], block: int, data: st.DataObject
) -> None:
    framing = Framing("blocks", prefix, block=block, offset=data.draw(st.integers(0, block - 1)))
    items = documents(lengths)
    expected = blocks(items, framing)
    for item in items:
        framed = framed_windows(item, framing, context_tokens=1000)
        covered = [t for each in framed for t in range(each.window.start, each.window.end)]
        assert covered == list(range(len(item.ids)))
        for each in framed:
            tokens = each.tokens(item)
            (home,) = [whole for whole in expected if tokens[-1] in whole]
            assert tokens == home[: len(tokens)], "the input is the beginning of its block"
            read = [t for other, first in each.preceding for t in other.ids[first:]]
            assert read == [t for t in each.before if t != 0]
