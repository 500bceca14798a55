"""What benchmarks/engine.py runs: a pair with generated weights of some shape, and a tokenizer of Llama's density.

No weights of 8B size and no Llama tokenizer need to be at hand. Weights are drawn where they are used, of such sizes
that every layer adds its share to the residual stream, and so that the four letters are what the model wants to say
after `Answer:`, some more and some less from question to question, as in a trained model.

Shapes: B texts of a batch, T tokens, D model width, N texts.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from serving import config_8b
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from evaluation.mmlu_folder import check_mmlu_dir
from models.configuration_llamba import LlambaConfig
from models.hybrid import HybridPair
from models.mixer import LlambaMixer
from models.modeling_llamba import LlambaForCausalLM

DENSITY = 124.0
"""Tokens of a mean 0-shot MMLU prompt: what Llama's own tokenizer makes of it."""
MERGES = 20_000
"""Trained; as many of them are used as give that density, some 15,000."""
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
# Llama 3's: contractions, words with the sign or space before them, up to three digits, signs, spaces.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
RESIDUAL = 0.4
"""What a layer adds, against what an embedding is."""
LETTER_LOGIT, LETTER_SPREAD = 16.0, 2.0
"""Mean and standard deviation of the letters' logits: above the log of the vocabulary, so that they are likely."""


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def open_tokenizer(file: Path, mmlu_dir: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `file`; where there is none, one is trained on the questions and kept there.

    Args:
        file: Of the `tokenizers` library, JSON.
        mmlu_dir: Local copy of `cais/mmlu`.
    """
    from tokenizers import Tokenizer

    if not file.exists():
        made = train_tokenizer(prompts(mmlu_dir))
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.{os.getpid()}")
        made.save(str(new))
        os.replace(new, file)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(file)), bos_token=BOS, eos_token=EOS, model_max_length=131072
    )


def prompts(mmlu_dir: Path) -> list[str]:
    """The test questions as lm-eval's 0-shot prompts."""
    from pyarrow.parquet import read_table

    check_mmlu_dir(mmlu_dir)
    made = []
    for file in sorted(mmlu_dir.glob("*/test-*.parquet")):
        subject = file.parent.name.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        for row in read_table(file, columns=["question", "choices"]).to_pylist():
            choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
            made.append(f"{head}{row['question'].strip()}{choices}\nAnswer:")
    return made


def train_tokenizer(texts: Sequence[str], density: float = DENSITY) -> Any:
    """A byte-level BPE with as many merges as make `density` tokens of a mean text, its first token (BOS) counted."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=MERGES + len(alphabet) + 2, initial_alphabet=alphabet, special_tokens=[BOS, EOS], show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *(f"Answer: {letter}" for letter in "ABCD" * 1000)], trainer)
    pieces = Counter(piece for text in texts for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    counts = torch.tensor(list(pieces.values()))
    state = BpeState(tokenizer)
    fewest, most = 1, len(state.merges)
    while most - fewest > 1:  # the more merges, the fewer tokens
        merges = (fewest + most) // 2
        model = state.model(merges)
        lengths = torch.tensor([len(model.tokenize(piece)) for piece in pieces])
        tokens = 1 + (counts * lengths).sum().item() / len(texts)
        fewest, most = (merges, most) if tokens > density else (fewest, merges)
        if abs(tokens / density - 1) < 1e-3:
            break
    tokenizer.model = state.model(merges)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


class BpeState:
    """Vocabulary and merges of a trained BPE, in the order in which they were found."""

    def __init__(self, tokenizer: Any) -> None:
        import json

        state = json.loads(tokenizer.to_str())["model"]
        self.merges: list[tuple[str, str]] = [tuple(merge) for merge in state["merges"]]
        self._vocab: dict[str, int] = state["vocab"]

    def model(self, merges: int) -> Any:
        """With the first `merges` alone."""
        from tokenizers.models import BPE

        known = self.merges[:merges]
        made = {first + second for first, second in self.merges[merges:]} - {a + b for a, b in known}
        kept = sorted((i, token) for token, i in self._vocab.items() if token not in made)
        return BPE(vocab={token: i for i, (_, token) in enumerate(kept)}, merges=known)


# --- the pair --------------------------------------------------------------------------------------------------------


def shapes(name: str, vocabulary: int) -> tuple[LlambaConfig, LlamaConfig]:
    """Configurations of a base and its donor: `8b` is Llamba-8B and Llama-3.1-8B; `small` is for a look at the tool.

    Args:
        name: Which.
        vocabulary: Tokens that a small model knows.
    """
    if name == "8b":
        hybrid = config_8b()
    else:
        donor = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=131072,
        )
        ssm = {"n_v_heads": 4, "n_qk_heads": 4, "d_state": 16}
        base = LlambaConfig(
            vocab_size=vocabulary, d_model=64, n_layer=6, mlp_cfg={"intermediate_size": 128}, ssm_cfg=ssm
        )
        hybrid = base.with_attention((0,), donor)
    return hybrid.with_attention(()), hybrid.llama_config()


@torch.no_grad()
def generated_pair(
    base_config: LlambaConfig, donor_config: LlamaConfig, dtype: torch.dtype, device: torch.device
) -> HybridPair:
    """A pair with drawn weights, the same each time on one kind of device."""
    torch.manual_seed(0)
    donor_config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlambaForCausalLM(base_config)
            donors = [LlamaDecoderLayer(donor_config, i) for i in range(base_config.n_layer)]
    finally:
        torch.set_default_dtype(before)
    for layer in (*model.backbone.layers, *donors):
        draw_layer(layer)
    model.backbone.embedding.weight.normal_()
    model.lm_head.weight.normal_(0.0, base_config.d_model**-0.5)
    for module in (model, *donors):
        module.eval().requires_grad_(False)
    return HybridPair(model, donors, donor_config)


def draw_layer(layer: nn.Module) -> None:
    """Matrices that keep the size of what they take; what is added to the residual stream is `RESIDUAL` of that."""
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            adds = name.endswith(("out_proj", "o_proj", "down_proj"))
            module.weight.normal_(0.0, (RESIDUAL if adds else 1.0) * module.in_features**-0.5)
    mixer = getattr(layer, "mixer", None)
    if isinstance(mixer, LlambaMixer):
        mixer.conv1d.weight.normal_(0.0, mixer.kernel**-0.5)
        mixer.conv1d.weight[mixer.inner :] *= mixer.states**-0.25  # so that B C is of size 1
        if mixer.conv1d.bias is not None:
            mixer.conv1d.bias.normal_(0.0, 0.1)


@torch.inference_mode()
def favour_letters(pair: HybridPair, texts: Sequence[Sequence[int]], letters: Sequence[int], batch: int = 16) -> None:
    """Let the head read the letters off where last hidden states of the texts are most alike, and most unlike.

    A trained head does the like. What a letter gets from the common direction makes it likely; in which of the
    directions of largest variance it lies is drawn, so that margins are far above rounding for most questions.

    Args:
        pair: Its head is changed.
        texts: Prompts, a hundred or more.
        letters: Tokens of the answers.
        batch: Texts at a time.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    last_ND = torch.cat(
        [last_hidden(pair, [texts[i] for i in order[b : b + batch]]) for b in range(0, len(order), batch)]
    )
    mean_D = last_ND.mean(0)
    _, size, directions_ND = torch.linalg.svd(last_ND - mean_D, full_matrices=False)
    used = min(len(letters), len(size))
    scaled_LD = directions_ND[:used] * (len(last_ND) ** 0.5 / size[:used, None])  # each gives logits of deviation 1
    drawn = torch.randn(len(letters), used, generator=torch.Generator().manual_seed(0)).to(scaled_LD)
    mixed_LD = LETTER_SPREAD * (drawn / drawn.norm(dim=1, keepdim=True)) @ scaled_LD
    rows_LD = mixed_LD + (LETTER_LOGIT - mixed_LD @ mean_D)[:, None] * mean_D / mean_D.square().sum()
    pair.model.lm_head.weight[list(letters)] = rows_LD.to(pair.dtype)


def last_hidden(pair: HybridPair, texts: Sequence[Sequence[int]]) -> Tensor:
    """What the head sees at the last token of each text, of the base, float32 [B, D]."""
    tokens_BT = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for row_T, text in zip(tokens_BT, texts, strict=True):
        row_T[: len(text)] = torch.as_tensor(text)
    h_BTD = pair.embed(tokens_BT.to(pair.device))
    for i in range(pair.depth):
        h_BTD = pair.base(i, h_BTD)
    last_B = torch.tensor([len(text) - 1 for text in texts])
    return pair.model.backbone.final_layernorm(h_BTD[torch.arange(len(texts)), last_B]).float()
