"""Our engine as a model of lm-eval, so that any task runs on a finished hybrid.

Log-likelihoods are ours: requests run packed, without padding, and what several of them begin with runs once. All else
(generation, chat templates, tokens of a text) is what lm-eval's HFLM does.

Suffixes: P positions whose logits are read, M targets, D model width, V vocabulary, R rows of a batch.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig

from evaluation.beginnings import common_beginnings
from evaluation.build import usable_device
from evaluation.engine import default_batch_tokens
from evaluation.errors import EvaluationError
from evaluation.memory import MAX_LOGITS
from evaluation.packing import PackedBatch, pack
from evaluation.questions import encode_pairs
from evaluation.walk import one_at_a_time
from genetic_algorithm import LayerSet
from models.loading import load_base, read_llamba_config
from models.modeling_llamba import LlambaForCausalLM
from models.packed.choose import choose_kernels
from models.packed.layers import PackedLayers
from models.packed.layout import make_layout, to_device
from models.tokenizer import load_tokenizer
from models.weights import read_json

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""Context and continuation as strings, None for a window of a long text, and as tokens."""
Answer = tuple[float, bool]
"""Log-probability of the continuation, in nats, and whether each of its tokens is the likeliest."""

_log = logging.getLogger(__name__)
_DTYPES = ("float32", "bfloat16", "float16")


@register_model("hybrid")
class HybridLM(HFLM):
    """A finished model, answering what lm-eval's tasks ask."""

    def __init__(
        self,
        pretrained: LlambaForCausalLM | str | Path,
        tokenizer: Any = None,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | None = None,
        batch_tokens: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int = 64,
        max_length: int | None = None,
        name: str | None = None,
        **unknown: Any,
    ) -> None:
        """Take a model, or load one; the arguments are those of --model_args.

        Args:
            pretrained: A Llamba or hybrid model, or its folder.
            tokenizer: Its tokenizer, or the folder of one; None for that in the model's folder.
            dtype: Of the weights of a folder: float32, bfloat16, float16, or auto for what its config.json says.
            device: Where the weights of a folder go: cpu or cuda:N; None for the GPU where there is one.
            batch_tokens: Most tokens in one forward pass; None for what suits the device.
            batch_size: Texts that are generated side by side, a number or `auto`; log-likelihoods do not ask for it.
            max_batch_size: Most of them where `auto` looks for what fits.
            max_length: Most tokens of a text; None for the model's own.
            name: What errors and results call the model; None for its folder.

        Raises:
            EvaluationError: an argument is unknown, or has an impossible value.
            ModelError: the folder is not a model, or is damaged.
        """
        if unknown:
            raise EvaluationError(
                f"the model hybrid has no argument {', '.join(sorted(unknown))}; it takes pretrained, tokenizer, "
                "dtype, device, batch_tokens, batch_size, max_batch_size, max_length and name"
            )
        for argument, value in (("batch_tokens", batch_tokens), ("max_length", max_length)):
            if value is not None and not (isinstance(value, int) and value > 0):
                raise EvaluationError(f"{argument}={value} is no number of tokens; give thousands, such as 4096")
        if isinstance(pretrained, LlambaForCausalLM):
            model, folder = pretrained, Path(pretrained.name_or_path)
        else:
            folder = Path(pretrained).expanduser()
            model = _load(folder, dtype, device)
        if tokenizer is None or isinstance(tokenizer, str | Path):
            tokenizer = load_tokenizer(folder if tokenizer is None else Path(tokenizer).expanduser())
        with _quiet_hflm():
            super().__init__(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),  # HFLM gives one without a padding token one
                backend="causal",
                batch_size=batch_size,
                max_batch_size=max_batch_size,
                max_length=max_length,
            )
        self.name = name or (str(folder) if folder.name else "the model")
        self.batch_tokens = batch_tokens or default_batch_tokens(self.device)

    def get_model_info(self) -> dict[str, Any]:
        """What results say of the model; asks no hub."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "model_revision": "",
            "model_sha": "",
            "model_layers": list(self.model.config.attention_layers),
            "batch_tokens": self.batch_tokens,
            "kernels": self._layers.kernels.name,
        }

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Answer]:
        """As HFLM, but all texts are tokenised at once."""
        pairs = [request.args for request in requests]
        encoded = encode_pairs(self.tokenizer, pairs)
        asked = [(pair, *tokens) for pair, tokens in zip(pairs, encoded, strict=True)]
        return self._loglikelihood_tokens(asked, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """As HFLM, but the windows of all texts share their batches."""
        windows: list[Request] = []
        counts = []
        for request in requests:
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own: list[Request] = [(None, *make_disjoint_window(window)) for window in rolling]
            windows += own
            counts.append(len(own))
        answers = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        totals = [sum(log_prob for log_prob, _ in islice(answers, count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As HFLM.

        Raises:
            EvaluationError: the tokenizer has no chat template.
        """
        if self.tokenizer.chat_template is None:
            raise EvaluationError(f"the tokenizer of {self.name} has no chat template; ask without one")
        return super().apply_chat_template(chat_history, add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """Answers in the order of `requests`.

        Raises:
            EvaluationError: a context or continuation has no tokens, a continuation is longer than the model, scores
                are not numbers, or not even one text fits into memory.
        """
        rows, readers = self._rows(requests)
        answers: dict[int, Answer] = {}
        with tqdm(total=len(requests), disable=disable_tqdm or None, desc="Running loglikelihood requests") as bar:
            left = np.arange(len(rows))
            while len(left):
                texts = [rows[r] for r in left]
                done: list[int] = []
                group_R, prefix_R = common_beginnings(texts)
                for batch in pack(texts, group_R, self.batch_tokens, prefix_R=prefix_R):
                    members = left[batch.members_R]
                    asked = [(place, i) for place, r in enumerate(members) for i in readers[r]]
                    found = self._answer(batch, [(place, requests[i][2]) for place, i in asked])
                    if found is None:  # out of memory; what is left is packed anew
                        break
                    for (_, i), answer in zip(asked, found, strict=True):
                        answers[i] = answer
                        if requests[i][0] is not None:
                            self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
                    done.extend(members)
                    bar.update(len(asked))
                left = np.setdiff1d(left, done)
        return [answers[i] for i in range(len(requests))]

    def _rows(self, requests: Sequence[Request]) -> tuple[list[NDArray[np.int32]], list[list[int]]]:
        """The distinct texts to be run, the last token of each request cut off, and which requests read each."""
        number: dict[tuple[int, ...], int] = {}
        readers: list[list[int]] = []
        longest, too_long = self.max_length, 0
        for i, (strings, context, continuation) in enumerate(requests):
            if not context or not continuation:
                raise EvaluationError(
                    f"{_spell(strings)}: the {'continuation' if context else 'context'} has no tokens, so that there "
                    "is nothing to score; check the task and the tokenizer"
                )
            if len(continuation) > longest:
                raise EvaluationError(
                    f"{_spell(strings)}: the continuation has {len(continuation)} tokens, the model takes {longest}; "
                    "leave the task out"
                )
            whole = context + continuation
            too_long += len(whole) > longest + 1
            row = number.setdefault(tuple(whole[-(longest + 1) :][:-1]), len(number))
            if row == len(readers):
                readers.append([])
            readers[row].append(i)
        if too_long:
            _log.warning("%d texts are longer than %d tokens: cut on the left", too_long, longest)
        return [np.array(row, dtype=np.int32) for row in number], readers

    def _answer(self, batch: PackedBatch, asked: Sequence[tuple[int, list[int]]]) -> list[Answer] | None:
        """Answers to continuations, each with the place in the batch of the row that it ends.

        None where memory does not suffice; from then on batches are smaller.
        """
        try:
            return self._scores(batch, asked)
        except torch.OutOfMemoryError as error:
            if len(batch.members_R) == 1:
                raise EvaluationError(
                    f"out of memory on {self.device}, even for one text of {len(batch.tokens_N)} tokens; stop what "
                    "else runs there, or give a smaller max_length"
                ) from error
        # Only here, the exception and all that its frames held being gone, is there memory to give back.
        self.batch_tokens = max(1, min(self.batch_tokens, len(batch.tokens_N)) // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        _log.warning("out of memory on %s: going on with %d tokens at a time", self.device, self.batch_tokens)
        return None

    def _scores(self, batch: PackedBatch, asked: Sequence[tuple[int, list[int]]]) -> list[Answer]:
        lengths_R = batch.row_lengths_R + np.append(batch.prefix_lengths_G, 0)[batch.prefix_of_row_R]
        counts = [len(continuation) for _, continuation in asked]
        row_M = np.repeat([place for place, _ in asked], counts)
        position_M = np.concatenate(
            [lengths_R[place] - len(continuation) + np.arange(len(continuation)) for place, continuation in asked]
        )
        token_M = np.concatenate([continuation for _, continuation in asked])
        at_P, from_M = np.unique(batch.at(row_M, position_M), return_inverse=True)
        log_prob_M, is_best_M = self._read(batch, at_P, from_M.reshape(-1), token_M)
        if torch.isnan(log_prob_M).any():
            raise self._not_numbers()
        # The sum of each is rounded to the model's dtype, as HFLM's is.
        sums = zip(log_prob_M.split(counts), is_best_M.split(counts), strict=True)
        return [(float(log_probs.sum()), bool(best.all())) for log_probs, best in sums]

    @torch.inference_mode()
    def _read(
        self, batch: PackedBatch, at_P: NDArray[np.int64], from_M: NDArray[np.int64], token_M: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Of each target, on the CPU: its log-probability in the model's dtype, and whether no token is likelier.

        Args:
            batch: What to run.
            at_P: Where in the pack logits are read.
            from_M: Which of these predicts the target.
            token_M: The target.
        """
        layers, device = self._layers, self.device
        layout = make_layout(
            batch.row_lengths_R,
            at_P,
            device=device,
            prefix_lengths=batch.prefix_lengths_G,
            prefix_of_row=batch.prefix_of_row_R,
        )
        embedded = layers.embed(*to_device([batch.tokens_N.astype(np.int64)], device))
        h_PD = one_at_a_time(layers.on(layout), embedded, LayerSet(())).sum()
        log_prob_M = h_PD.new_empty(len(token_M))
        is_best_M = torch.empty(len(token_M), dtype=torch.bool, device=device)
        most = max(1, MAX_LOGITS // self.model.config.vocab_size)
        for begin in range(0, len(at_P), most):
            log_prob_PV = F.log_softmax(layers.logits(h_PD[begin : begin + most]), dim=-1)
            chosen = np.flatnonzero((begin <= from_M) & (from_M < begin + most))
            m, source, token = to_device([chosen, from_M[chosen] - begin, token_M[chosen]], device)
            log_prob_M[m] = log_prob_PV[source, token]
            is_best_M[m] = log_prob_PV.argmax(dim=-1)[source] == token
        return log_prob_M.cpu(), is_best_M.cpu()

    @cached_property
    def _layers(self) -> PackedLayers:
        config = self.model.config
        donor = config.llama_config() if config.attention_layers else None
        kernels = choose_kernels(self.device, self.model.dtype, config, donor)
        return PackedLayers.of_model(self.model, kernels)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        return super()._model_generate(context, max_length, stop, logits_processor=[self._check_scores], **kwargs)

    def _check_scores(self, tokens_BT: Tensor, scores_BV: Tensor) -> Tensor:
        """Generating would take a token where no score is a number."""
        if torch.isnan(scores_BV).any():
            raise self._not_numbers()
        return scores_BV

    def _not_numbers(self) -> EvaluationError:
        return EvaluationError(
            f"{self.name} gives scores that are not numbers; check its weights, or try another dtype than "
            f"{str(self.model.dtype).removeprefix('torch.')}"
        )


def _load(folder: Path, dtype: str | torch.dtype, device: str | None) -> LlambaForCausalLM:
    """A model from its folder, with the generation settings that lie there."""
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        name = str(getattr(read_llamba_config(folder), "dtype", None) or "float32").removeprefix("torch.")
    if name not in _DTYPES:
        raise EvaluationError(f"dtype={name} is unknown; give auto, {', '.join(_DTYPES)}")
    where = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load_base(folder, dtype=getattr(torch, name), device=where)
    settings = folder / "generation_config.json"
    if settings.is_file():
        model.generation_config = GenerationConfig.from_dict(read_json(settings))
    return model


def _spell(strings: tuple[str, str] | None) -> str:
    """A request, for an error."""
    if strings is None:
        return "a window of a long text"
    context, continuation = strings
    return f"request {continuation!r} after {'...' * (len(context) > 40) + context[-40:]!r}"


@contextmanager
def _quiet_hflm() -> Iterator[None]:
    """Leave out that HFLM is given a model instead of a name, which it warns about."""
    noisy = logging.getLogger("lm_eval.models.huggingface")
    noisy.addFilter(_is_no_remark)
    try:
        yield
    finally:
        noisy.removeFilter(_is_no_remark)


def _is_no_remark(record: logging.LogRecord) -> bool:
    return "`pretrained`" not in record.getMessage()
