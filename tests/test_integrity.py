"""A check in the background: what it finds, when it says so, and what must not pass for equal."""

import hashlib
from pathlib import Path
from threading import Event

import pytest

from mixtura.errors import CheckpointError
from mixtura.integrity import Check, Claim, claim_of_bytes, digest_of_bytes, named


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"aaaabbbbcccc")
    return path


def claims(file: Path, *contents: bytes) -> list[Claim]:
    """That four bytes each lie there, one after another."""
    return [
        claim_of_bytes(file, f"tensor {number}", digest(content), 4 * number, 4)
        for number, content in enumerate(contents)
    ]


def test_a_digest_is_of_these_bytes_alone(file: Path) -> None:
    assert digest_of_bytes(file, 4, 4) == digest(b"bbbb")
    assert digest_of_bytes(file, 0, 0) == digest(b"")
    # Two whole buffers of 1 MiB and three bytes more.
    file.write_bytes(b"x" + bytes(2**21) + b"yyyz")
    assert digest_of_bytes(file, 1, 2**21 + 3) == digest(bytes(2**21) + b"yyy")


def test_what_is_as_it_was_written_passes(file: Path) -> None:
    check = Check(claims(file, b"aaaa", b"bbbb", b"cccc")).begin()
    check.finish()
    check.poll()
    assert check.claims == 3
    assert list(check.watch("ab")) == ["a", "b"]


def test_what_differs_is_named_with_file_and_remedy(file: Path) -> None:
    check = Check(claims(file, b"aaaa", b"bbbB"), lambda: "fetch it again")
    with pytest.raises(CheckpointError) as caught:
        check.finish()
    assert str(caught.value) == (
        f"{file}: tensor 1 is not what was written (its digest differs); fetch it again"
    )


def test_what_lies_in_another_place_is_named(file: Path) -> None:
    # The third place has to hold what the first one does.
    check = Check([*claims(file, b"aaaa", b"bbbb", b"aaaa")[::2]])
    with pytest.raises(CheckpointError, match="tensor 2 is not what was written"):
        check.finish()
    file.write_bytes(b"bbbbaaaacccc")
    with pytest.raises(CheckpointError, match=r"tensor \d holds what was written as tensor \d"):
        Check(claims(file, b"aaaa", b"bbbb")).finish()


def test_a_mismatch_ends_what_is_watched(file: Path) -> None:
    may_end, seen = Event(), []

    def found() -> str:
        assert may_end.wait(10)
        return digest(b"other")

    check = Check([Claim(file, "tensor", digest(b"aaaa"), found)]).begin()
    check.poll()
    watched = check.watch(range(3))
    seen.append(next(watched))
    may_end.set()
    with pytest.raises(CheckpointError, match="tensor is not what was written"):
        check.finish()
    with pytest.raises(CheckpointError, match="tensor is not what was written"):
        next(watched)
    assert seen == [0]


def test_no_failure_of_reading_passes_for_equality(file: Path) -> None:
    gone = Check(claims(file, b"aaaa"))
    file.unlink()
    with pytest.raises(CheckpointError, match=r"tensor 0 cannot be read \(No such file"):
        gone.begin().finish()

    def broken() -> str:
        raise RuntimeError("a bug of ours")

    check = Check([Claim(file, "tensor", digest(b"aaaa"), broken)]).begin()
    with pytest.raises(RuntimeError, match="a bug of ours"):
        check.finish()


def test_a_file_that_became_shorter_differs(file: Path) -> None:
    check = Check(claims(file, b"aaaa", b"bbbb", b"cccc"))
    file.write_bytes(b"aaaabbbbccc")
    with pytest.raises(CheckpointError, match="tensor 2 is not what was written"):
        check.finish()


def test_what_was_stopped_reads_no_more(file: Path) -> None:
    check = Check(claims(file, b"AAAA"))
    check.stop()
    check.finish()


def test_a_tensor_in_words() -> None:
    assert named("norm.weight", "norm") == "norm.weight (norm)"
    assert named("blocks.0.ffn.experts", "expert", 3) == "blocks.0.ffn.experts, expert 3 (expert)"
    assert named("random.cpu", None) == "random.cpu"
