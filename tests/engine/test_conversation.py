"""A conversation is one growing text, of which whole turns are forgotten; the context is 48."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from mixtura.engine.chat_format import Exchange, chat_format_for
from mixtura.engine.conversation import Conversation, Turn
from mixtura.engine.sampling import Sampling
from mixtura.errors import ConfigError
from mixtura.models import Decoder, DecoderConfig, DecoderOutput
from mixtura.tokenizers import CheckpointTokenizer, TokenFacts
from mixtura.tokenizers.byte_level import ByteLevelVocabulary, byte_level_tokenizer, splitting_of
from mixtura.tokenizers.tokenizer import ByteTokenizer

GREEDY = Sampling(temperature=0)
TOKENIZER = ByteTokenizer()


def said(turn: Turn) -> str:
    """The answer's text, listened to until its end."""
    return "".join(turn.answer)


@pytest.fixture
def parrot(build: Callable[[str], Decoder]) -> Decoder:
    """Answers a line break with "yes" and a blank line."""
    model = build("dense")
    follows = {"\n": "y", "y": "e", "e": "s", "s": "!", "!": "\n"}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.norm.get_parameter("weight").fill_(1)
        assert model.embedding is not None
        for place, (now, then) in enumerate(follows.items()):
            model.embedding.get_parameter("weight")[ord(now), place] = 1
            model.head.weight[ord(then), place] = 1
    return model


def read(model: Decoder) -> list[str]:
    """Collects the text of each call of the model from now on."""
    calls: list[str] = []
    model.register_forward_pre_hook(
        lambda _, inputs: calls.append(TOKENIZER.decode(inputs[0][0].tolist()))
    )
    return calls


def test_turns_grow_one_text(parrot: Decoder) -> None:
    talk = Conversation(parrot, TOKENIZER, GREEDY, max_tokens=4)
    first = talk.say("ab")
    assert said(first) == "yes!"
    second = talk.say("c")
    assert said(second) == "yes!"
    # "ab\nyes!\n\n" is 9 tokens and "c\n" 2.
    assert second.answer.result.prompt_tokens == 11
    assert (first.forgotten, second.forgotten) == (0, 0)
    assert [turn.said for turn in talk.turns] == ["ab", "c"]


def test_only_what_is_new_is_read(parrot: Decoder) -> None:
    talk = Conversation(parrot, TOKENIZER, GREEDY, max_tokens=4)
    said(talk.say("ab"))
    calls = read(parrot)
    said(talk.say("c"))
    # Of "ab\nyes!\n\nc\n" the model has read "ab\nyes" and said "!", which it has not read yet.
    assert calls == ["!\n\nc\n", "y", "e", "s"]


def test_a_blank_line_ends_an_answer(parrot: Decoder) -> None:
    letters = itertools.cycle("\n\nyes\nno\n\nmore")

    def dictate(_: object, __: object, output: DecoderOutput) -> DecoderOutput:
        output.logits_BSV[..., ord(next(letters))] += 100
        return output

    parrot.register_forward_hook(dictate)
    turn = Conversation(parrot, TOKENIZER, GREEDY, max_tokens=40).say("ab")
    # Line breaks before anything is said do not end it, nor does a single one.
    assert said(turn) == "\n\nyes\nno"
    assert turn.answer.result.finish == "stop"


def test_the_oldest_turns_are_forgotten_whole(parrot: Decoder) -> None:
    talk = Conversation(parrot, TOKENIZER, GREEDY, max_tokens=4)
    # Each turn is 1 + 1 + 4 + 2 = 8 tokens; a new one needs 2 + 4 = 6, which leaves 42: five turns.
    turns = []
    for letter in "abcdefgh":
        turns.append(talk.say(letter))
        said(turns[-1])
    assert [turn.forgotten for turn in turns] == [0, 0, 0, 0, 0, 0, 1, 1]
    assert [turn.said for turn in talk.turns] == list("cdefgh")
    assert turns[-1].answer.result.prompt_tokens == 5 * 8 + 2


def test_a_smaller_context_forgets_sooner(parrot: Decoder) -> None:
    talk = Conversation(parrot, TOKENIZER, GREEDY, max_tokens=4, context=20)
    # A turn is 8 tokens and a new one needs 2 + 4: of 20, one past turn fits and a second does not.
    forgotten = []
    for letter in "abcd":
        turn = talk.say(letter)
        said(turn)
        forgotten.append(turn.forgotten)
    assert forgotten == [0, 0, 1, 1]


def test_a_chat_takes_no_more_than_the_usual_context() -> None:
    sizes = {"layers": 1, "width": 8, "vocabulary": 257, "context": 10**6, "ffn_width": 8}
    heads = {"heads": 2, "kv_heads": 1, "head_dim": 4}
    model = Decoder(DecoderConfig.parse({**sizes, "attention": heads}))
    talk = Conversation(model, TOKENIZER, GREEDY, max_tokens=4)
    with pytest.raises(ConfigError, match="exceeds the context of 8192 that was asked for, of the"):
        talk.say("x" * 9000)


def test_a_long_answer_claims_no_more_than_half(parrot: Decoder) -> None:
    talk = Conversation(parrot, TOKENIZER, GREEDY, max_tokens=1000)
    said(talk.say("a" * 10))
    # The answer "yes!\nyes!\n..." filled the context, so nothing of that turn can stay.
    turn = talk.say("b")
    assert turn.forgotten == 1
    assert turn.answer.result.prompt_tokens == 2


def test_an_interrupted_answer_stays_as_far_as_it_went(parrot: Decoder) -> None:
    talk = Conversation(parrot, TOKENIZER, GREEDY, max_tokens=4)
    turn = talk.say("ab")
    assert list(itertools.islice(turn.answer, 2)) == ["y", "e"]
    calls = read(parrot)
    after = talk.say("c")
    assert said(after) == "yes!"
    assert calls[0].endswith("\n\nc\n")
    # "ab\nye\n\n" is 7 tokens and "c\n" 2.
    assert after.answer.result.prompt_tokens == 9


def test_reset_forgets(parrot: Decoder) -> None:
    talk = Conversation(parrot, TOKENIZER, GREEDY, max_tokens=4)
    said(talk.say("ab"))
    talk.reset()
    turn = talk.say("c")
    said(turn)
    assert turn.answer.result.prompt_tokens == 2


def test_again_answers_what_was_said_last(parrot: Decoder) -> None:
    talk = Conversation(parrot, TOKENIZER, GREEDY, max_tokens=4)
    with pytest.raises(ConfigError, match="nothing was said that could be answered anew"):
        talk.again()
    said(talk.say("ab"))
    said(talk.say("c"))
    turn = talk.again()
    assert said(turn) == "yes!"
    # The first turn's 9 tokens and "c\n", as if it had not been answered yet.
    assert turn.answer.result.prompt_tokens == 11
    assert [one.said for one in talk.turns] == ["ab", "c"]


def test_restored_turns_are_read_and_forgotten_like_others(parrot: Decoder) -> None:
    talk = Conversation(parrot, TOKENIZER, GREEDY, max_tokens=4)
    talk.restore([Exchange("a" * 10, "b" * 10), Exchange("c", "yes!")])
    turn = talk.say("d")
    said(turn)
    # 10 + 1 + 10 + 2 = 23, 8 and 2 are 33, within 48 - 4.
    assert (turn.answer.result.prompt_tokens, turn.forgotten) == (33, 0)
    turn = talk.say("e" * 12)
    said(turn)
    # 33 - 2 + 8 + 13 = 52 exceeds 44; without the first 29.
    assert (turn.answer.result.prompt_tokens, turn.forgotten) == (29, 1)


def test_what_no_context_holds_is_refused_and_forgets_nothing(parrot: Decoder) -> None:
    talk = Conversation(parrot, TOKENIZER, GREEDY, max_tokens=4)
    said(talk.say("ab"))
    with pytest.raises(ConfigError, match="prompt of 61 tokens exceeds the model's context of 48"):
        talk.say("x" * 60)
    assert [turn.said for turn in talk.turns] == ["ab"]


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def roles() -> CheckpointTokenizer:
    """Each byte is a token, then the three marks, of which 258 ends a turn."""
    vocabulary = ByteLevelVocabulary(
        tokens=[*sorted(ByteLevel.alphabet()), *MARKS],
        merges=[],
        splitting=splitting_of("gpt-2"),
        special=MARKS,
        added=[],
        begin=None,
    )
    return byte_level_tokenizer(vocabulary, TokenFacts(chat_template=CHATML))


@pytest.fixture
def polite(roles: CheckpointTokenizer) -> Decoder:
    """Says "ok" and ends its turn, over and over, whatever it reads; a context of 160."""
    attention = {"heads": 2, "kv_heads": 1, "head_dim": 4}
    sizes = {"layers": 1, "width": 8, "vocabulary": 259, "context": 160, "ffn_width": 8}
    model = Decoder(DecoderConfig.parse({**sizes, "attention": attention}))
    said = itertools.cycle([*roles.encode("ok"), 258])

    def dictate(_: object, __: object, output: DecoderOutput) -> DecoderOutput:
        output.logits_BSV[..., next(said)] += 100
        return output

    model.register_forward_hook(dictate)
    return model


def test_a_model_with_a_template_talks_through_roles(
    polite: Decoder, roles: CheckpointTokenizer
) -> None:
    talk = Conversation(polite, roles, GREEDY, max_tokens=8, system="s")
    first = talk.say("ab")
    assert said(first) == "ok"
    assert first.answer.result.finish == "end"
    # Marks count 1 each: "<system\ns>\n" is 11, "<user\nab>\n" 10, "<assistant\n" 11.
    assert first.answer.result.prompt_tokens == 11 + 10 + 11
    second = talk.say("c")
    assert said(second) == "ok"
    # Before "<user\nc>\n", which is 9: the answer's "ok>\n", 4 more than its opening.
    assert second.answer.result.prompt_tokens == 32 + 4 + 9 + 11


def test_roles_forget_the_oldest_turns_but_not_the_system(
    polite: Decoder, roles: CheckpointTokenizer
) -> None:
    talk = Conversation(polite, roles, GREEDY, max_tokens=8, system="s")
    # Of 160 - 8 = 152 the system takes 11 and a turn 9 + 15 = 24; the new one needs 9 + 11 = 20.
    # So 121 are left for the past: five turns.
    forgotten, prompts = [], []
    for letter in "abcdefgh":
        turn = talk.say(letter)
        said(turn)
        forgotten.append(turn.forgotten)
        prompts.append(turn.answer.result.prompt_tokens)
    assert forgotten == [0, 0, 0, 0, 0, 0, 1, 1]
    assert prompts[-1] == 11 + 5 * 24 + 20


def test_a_broken_template_and_a_system_without_one_are_refused(
    roles: CheckpointTokenizer, build: Callable[[str], Decoder]
) -> None:
    broken = roles.facts.model_copy(update={"chat_template": "{% for"})
    with pytest.raises(ConfigError, match="the model's chat template cannot be read"):
        chat_format_for(_with(roles, broken))
    with pytest.raises(ConfigError, match="needs a model with a chat template"):
        Conversation(build("dense"), TOKENIZER, GREEDY, max_tokens=4, system="s")


def _with(tokenizer: CheckpointTokenizer, facts: TokenFacts) -> CheckpointTokenizer:
    other = copy.copy(tokenizer)
    other.facts = facts
    return other
