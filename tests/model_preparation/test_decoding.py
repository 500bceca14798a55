"""A Decoder writes what `model.generate` writes, with one graph for all texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import DynamicCache, LlamaConfig, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from model_preparation import decoding
from model_preparation.decoding import CompilationError, Decoder
from models.hybrid import load_hybrid
from models.loading import load_base
from models.modeling_llamba import LlambaForCausalLM
from models.pairs import get_pair
from tests.conftest import long_one
from tests.model_preparation.conftest import DEPTH, WIDTH, WORDS, llamba_config

MIXES = {"none": (), "some": (1, 2), "all": tuple(range(DEPTH))}
every_mix = pytest.mark.parametrize("layers", MIXES.values(), ids=MIXES)
WAYS = {"plain": None, "compiled": {"backend": "eager"}}  # which compiles nothing but needs the same graphs
every_way = pytest.mark.parametrize("compiled", WAYS.values(), ids=WAYS)
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture
def graphs() -> Iterator[Callable[[], int]]:
    """Says how many graphs there are by now."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def hybrid(layers: tuple[int, ...]) -> LlambaForCausalLM:
    """A random one, whose texts vary."""
    torch.manual_seed(0)
    donor = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
    )
    config = llamba_config(initializer_range=0.3)
    return LlambaForCausalLM(config.with_attention(layers, donor) if layers else config).eval()


def prompt(length: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(2, len(WORDS), (batch, length), generator=torch.Generator().manual_seed(length))


class Listener(BaseStreamer):
    """Notes what a streamer is told, beside what else happens."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.flatten().tolist())

    def end(self) -> None:
        self.heard.append("end")


@every_mix
@every_way
@pytest.mark.parametrize("batch", [1, 3])
def test_texts_of_every_length_are_those_of_generate(
    batch: int, compiled: Any, layers: tuple[int, ...], graphs: Callable[[], int]
) -> None:
    model = hybrid(layers)
    decoder = Decoder(model, compiled=compiled)
    seen = set()
    for length in (17, 1, 9, 3):  # shorter than the convolution, and longer than a chunk
        text = decoder.generate(prompt(length, batch), **GREEDY)
        assert torch.equal(text, model.generate(prompt(length, batch), **GREEDY))
        seen |= set(text[:, length:].flatten().tolist())
    assert len(seen) > 5  # else any model would do
    assert graphs() == (1 if compiled else 0)
    assert decoder.room == 17 + 8


@pytest.mark.parametrize("layers", [pytest.param((), marks=long_one), (0, 2, 4)])
def test_the_tiny_pair_says_the_same(layers: tuple[int, ...], graphs: Callable[[], int]) -> None:
    tiny = get_pair("tiny")
    base, donor = (str(source.folder) for source in (tiny.base, tiny.donor))
    model = load_hybrid(base, layers, donor) if layers else load_base(base)
    decoder = Decoder(model, compiled=WAYS["compiled"])
    for length in (30, 7, 12):
        ids = torch.randint(3, 400, (1, length), generator=torch.Generator().manual_seed(length))
        options = GREEDY | {"max_new_tokens": 20}
        assert torch.equal(decoder.generate(ids, **options), model.generate(ids, **options))
    assert graphs() == 1


@pytest.mark.parametrize(
    "options",
    [{"temperature": 3.0}, {"temperature": 2.0, "top_p": 0.7, "top_k": 0}, {"repetition_penalty": 1.7, "top_k": 5}],
)
def test_chance_chooses_the_same_by_the_same_seed(options: dict[str, Any]) -> None:
    model, texts = hybrid((1,)), []
    decoder = Decoder(model, compiled=None)
    for seed in (1, 2):
        for generate in (model.generate, decoder.generate):
            torch.manual_seed(seed)
            texts.append(generate(prompt(5, 2), **GREEDY | {"do_sample": True} | options).tolist())
    assert texts[0] == texts[1]
    assert texts[2] == texts[3] != texts[0]


@every_way
def test_a_text_ends_at_any_of_its_last_tokens(compiled: Any, graphs: Callable[[], int]) -> None:
    model = hybrid((1, 2))
    decoder = Decoder(model, compiled=compiled)
    whole = model.generate(prompt(6, 2), **GREEDY)
    ends = [int(whole[0, 8]), int(whole[1, 10])]
    for batch in (prompt(6, 2), prompt(6, 2)[:1]):
        options = GREEDY | {"eos_token_id": ends}
        text = decoder.generate(batch, **options)
        assert torch.equal(text, model.generate(batch, **options))
        assert text.shape[1] < whole.shape[1]
        assert text[0, -1] in (0, *ends)


def test_the_streamer_hears_each_token_while_the_next_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, listener = hybrid((1,)), Listener()

    def step(*arguments: Any) -> torch.Tensor:
        listener.heard.append("step")
        return run_step(*arguments)

    run_step = decoding.run_step
    monkeypatch.setattr(decoding, "run_step", step)
    text = Decoder(model, compiled=None).generate(prompt(4), streamer=listener, **GREEDY | {"max_new_tokens": 3})
    first, second, third = text[0, 4:].tolist()
    assert listener.heard == [prompt(4)[0].tolist(), "step", [first], "step", [second], [third], "end"]


@every_way
def test_a_text_after_an_interrupted_one_is_whole(compiled: Any, graphs: Callable[[], int]) -> None:
    class Interrupting(Listener):
        def put(self, value: torch.Tensor) -> None:
            super().put(value)
            if len(self.heard) == 4:
                raise KeyboardInterrupt

    model = hybrid((1, 2))
    decoder = Decoder(model, compiled=compiled)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            decoder.generate(prompt(5), streamer=Interrupting(), **GREEDY)
        assert torch.equal(decoder.generate(prompt(9), **GREEDY), model.generate(prompt(9), **GREEDY))


@pytest.mark.parametrize(
    "layers", [pytest.param(MIXES[mix], id=mix, marks=() if mix == "some" else long_one) for mix in MIXES]
)
def test_room_grows_when_a_text_needs_it(
    layers: tuple[int, ...], graphs: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    model = hybrid(layers)
    decoder = Decoder(model, compiled=WAYS["compiled"])
    decoder.prepare(12)
    assert decoder.compile_seconds is not None
    rooms = []
    for length in (4, 5, 30, 15):
        assert torch.equal(decoder.generate(prompt(length), **GREEDY), model.generate(prompt(length), **GREEDY))
        rooms.append(decoder.room)
    assert rooms == [12, 24, 48, 48]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("compiling")]
    assert ["12 tokens" in told[0], "24 tokens" in told[1], "48 tokens" in told[2], len(told)] == [True, True, True, 3]
    assert graphs() == 3


@long_one
def test_shapes_are_as_many_as_there_are(graphs: Callable[[], int]) -> None:
    model = hybrid((1,))
    with torch._dynamo.config.patch(recompile_limit=1):  # 8 by default
        for decoder in (Decoder(model, compiled=WAYS["compiled"]), Decoder(model, compiled=WAYS["compiled"])):
            for batch, length in ((1, 4), (3, 4), (2, 4), (2, 40)):
                text = decoder.generate(prompt(length, batch), **GREEDY)
                assert torch.equal(text, model.generate(prompt(length, batch), **GREEDY))
    assert graphs() == 8


def test_processors_of_the_caller_are_heard() -> None:
    def only_seven(text_BT: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        return scores_BV.index_fill(1, torch.tensor(7), 1e9)

    options = GREEDY | {"logits_processor": LogitsProcessorList([only_seven])}
    text = Decoder(hybrid(()), compiled=None).generate(prompt(3), **options)
    assert text[0, 3:].tolist() == 8 * [7]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_beams": 2}, "knows no beam_search; call model.generate"),
        ({"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}, "without padding; call model.generate"),
        ({"return_dict_in_generate": True}, "returns tokens only; call model.generate"),
        ({"past_key_values": None}, "takes no cache"),
    ],
)
def test_what_it_cannot_do_is_refused(options: dict[str, Any], told: str) -> None:
    model = hybrid((1,))
    if "past_key_values" in options:
        options = {"past_key_values": DynamicCache(config=model.config)}
        model(prompt(1, 2), past_key_values=options["past_key_values"])
    with pytest.raises(ValueError, match=told):
        Decoder(model, compiled=None).generate(prompt(3, 2), **GREEDY | options)


def test_a_machine_that_cannot_compile_says_why(graphs: Callable[[], int]) -> None:
    def without_compiler(*_: Any) -> None:
        raise OSError("there is no gcc\nanywhere")

    with pytest.raises(
        CompilationError, match=r"cannot be compiled here \(.*there is no gcc.*; decode without"
    ) as found:
        Decoder(hybrid((1,)), compiled={"backend": without_compiler}).prepare(8)
    assert "\n" not in str(found.value)
