"""The split by document: deterministic, disjoint, stable, and never empty on a side."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.data.documents import Document
from mixtura.data.split import Side, share, split
from mixtura.errors import DataError

NAMES = st.lists(st.text(min_size=1, max_size=8), unique=True, min_size=2, max_size=60)
HELDOUT = st.floats(0.001, 0.5)


def sides(names: list[str], heldout: float, seed: int) -> dict[str, Side]:
    documents = [Document(name, "d", f"text of {name}") for name in names]
    return {document.name: side for side, document in split(documents, heldout, seed)}


@given(names=NAMES, heldout=HELDOUT, seed=st.integers())
def test_each_document_has_one_side_and_no_side_is_empty(
    names: list[str], heldout: float, seed: int
) -> None:
    found = sides(names, heldout, seed)
    assert list(found) == names
    assert set(found.values()) == {"train", "heldout"}
    assert sides(names, heldout, seed) == found


@given(names=NAMES, heldout=HELDOUT, seed=st.integers())
def test_a_side_depends_on_the_name_and_the_seed_alone(
    names: list[str], heldout: float, seed: int
) -> None:
    shares = {name: share(name, seed) for name in names}
    if min(shares.values()) < heldout <= max(shares.values()):
        expected = {name: "heldout" if at < heldout else "train" for name, at in shares.items()}
        assert sides(names, heldout, seed) == expected
        assert sides(names[::-1], heldout, seed) == expected
    else:
        # Only the document nearest to the bound moved.
        found = list(sides(names, heldout, seed).values())
        assert 1 in (found.count("train"), found.count("heldout"))


def test_about_the_share_asked_for_is_held_out() -> None:
    # 2,000 documents at 0.05: 100 expected, standard deviation sqrt(2000 * 0.05 * 0.95) = 9.7.
    found = list(sides([str(n) for n in range(2000)], 0.05, seed=0).values())
    assert 60 < found.count("heldout") < 140


def test_another_seed_holds_out_others() -> None:
    names = [str(n) for n in range(200)]
    assert sides(names, 0.5, seed=0) != sides(names, 0.5, seed=1)


def test_shares_are_even_and_follow_from_the_name() -> None:
    shares = [share(str(n), 0) for n in range(1000)]
    assert shares[0] == share("0", 0)
    # The mean of 1,000 even draws: 0.5, standard deviation sqrt(1 / 12 / 1000) = 0.009.
    assert sum(shares) / 1000 == pytest.approx(0.5, abs=0.05)


def test_one_document_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"a\.txt is the only document.*data\.source\.separator"):
        sides(["a.txt"], 0.05, seed=0)
    with pytest.raises(DataError, match="no document"):
        sides([], 0.05, seed=0)
