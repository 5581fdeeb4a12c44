"""What models cost by list price: estimates, for the direction and not for the books.

The catalogue is a file beside this one (data/README.md says where it comes from). A price may depend on the
day, the time of day and the size of the prompt. Of a model that is not in it the cost is not known, which is
never the same as zero.

Hosts name models as they like. A name is looked for like this, in lower case:

- A provider may stand in front, as in "openai/gpt-4o", "openai:gpt-4o" or "openrouter/openai/gpt-4o". Without
  one it is the maker of the model. Who only passes on what others sell is left out; another provider that is
  not in the catalogue has prices of its own, so the model is not known.
- A fine-tuned model, such as "ft:gpt-4.1-2025-04-14:acme::BzrYdMNm", has the price of its kind.
- A dated release or "-latest" has the price of its model, unless the catalogue says that it has another.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Context, Decimal, Inexact
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

_FILE: Final = Path(__file__).parent / "data" / "model_prices.json"
# Wide enough for any count of tokens by any price: nothing is ever rounded.
_EXACT: Final = Context(prec=60, traps=[Inexact])
_NOTHING: Final = Decimal(0)
_REMEMBERED_NAMES: Final = 4096

# As hosts and gateways name them: who sells, as the catalogue names it.
_PROVIDERS: Final[Mapping[str, str]] = {
    "anthropic": "anthropic",
    "azure": "azure",
    "azure_ai": "azure",
    "dashscope": "dashscope",
    "deepseek": "deepseek",
    "gemini": "google",
    "google": "google",
    "google-gla": "google",
    "google-vertex": "google",
    "google_genai": "google",
    "google_vertexai": "google",
    "groq": "groq",
    "mistral": "mistral",
    "mistralai": "mistral",
    "moonshot": "moonshot",
    "moonshotai": "moonshot",
    "openai": "openai",
    "openai-chat": "openai",
    "openai-responses": "openai",
    "qwen": "dashscope",
    "vertex_ai": "google",
    "x-ai": "xai",
    "xai": "xai",
    "z-ai": "zai",
    "zai": "zai",
}
# Gateways that pass on the prices of others, and words that say nothing.
_TRANSPARENT: Final = frozenset({"litellm", "litellm_proxy", "models", "openrouter"})
# Who makes the models that it sells. Of a model that two of them sell, the first is meant.
_MAKERS: Final = (
    "openai",
    "anthropic",
    "google",
    "deepseek",
    "xai",
    "mistral",
    "dashscope",
    "moonshot",
    "zai",
)
_RELEASE: Final = re.compile(r"(.+?)(?:[-@](?:20\d{6}|20\d\d-\d\d-\d\d)|-latest)", re.ASCII)
# Dated releases at another price than their model, of which the catalogue has none.
_OTHER_PRICE: Final = frozenset({"gpt-4o-2024-05-13"})


@dataclass(frozen=True, slots=True)
class _Rate:
    """USD per token, for requests of more than `above` input tokens."""

    above: int
    input: Decimal
    output: Decimal


@dataclass(frozen=True, slots=True)
class _Entry:
    """Rates with when they apply, both in UTC: from a day on, and within a part of every day."""

    # The one for the largest requests first; the last one is for all.
    rates: tuple[_Rate, ...]
    start: date | None = None
    window: tuple[time, time] | None = None

    def applies(self, moment: datetime) -> bool:
        if self.start is not None and moment.date() < self.start:
            return False
        return self.window is None or self.window[0] <= moment.time() < self.window[1]


class Catalogue:
    """List prices of models."""

    def __init__(self, name: str, prices: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """`prices` are entries by "provider/model", in USD per million tokens, as in the file."""
        self.name = name
        self._prices = {key: tuple(map(_entry, entries)) for key, entries in prices.items()}
        # Events name few models again and again.
        self._find = lru_cache(_REMEMBERED_NAMES)(self._look_up)

    @classmethod
    def load(cls) -> Self:
        """The catalogue of this release."""
        document = json.loads(_FILE.read_text())
        return cls(document["name"], document["models"])

    def cost(self, model: str, input_tokens: int, output_tokens: int, moment: datetime) -> Decimal | None:
        """What the tokens of one request cost in USD, exactly; None if that is not known.

        No tokens of no model cost nothing. Tokens without a model, or a model without tokens, mean that the
        host does not say everything. Which part of the input was cached is not said either, so that all of it
        counts in full.
        """
        if not input_tokens and not output_tokens:
            return None if model else _NOTHING
        entries = self._find(model)
        if entries is None:
            return None
        moment = moment.astimezone(UTC)
        # Later entries are exceptions to earlier ones.
        entry = next((entry for entry in reversed(entries) if entry.applies(moment)), None)
        if entry is None:
            return None
        rate = next(rate for rate in entry.rates if input_tokens > rate.above)
        return _EXACT.add(
            _EXACT.multiply(rate.input, Decimal(input_tokens)),
            _EXACT.multiply(rate.output, Decimal(output_tokens)),
        )

    def key(self, model: str) -> str | None:
        """The name that the catalogue has for a model, such as "openai/gpt-4o"; None if it has no price."""
        provider, model = _split(model.strip().lower())
        if provider is None:
            return None
        sellers = (provider,) if provider else _MAKERS
        keys = (f"{seller}/{name}" for name in _spellings(model) for seller in sellers)
        return next((key for key in keys if key in self._prices), None)

    def _look_up(self, model: str) -> tuple[_Entry, ...] | None:
        key = self.key(model)
        return None if key is None else self._prices[key]


def _split(name: str) -> tuple[str | None, str]:
    """The provider, "" if none is named and None for one without prices here; and the model."""
    provider = ""
    while match := re.match(r"([a-z0-9_.-]+)[/:]", name):
        word = match[1]
        if word in _TRANSPARENT:
            name = name[match.end() :]
        elif word in _PROVIDERS and not provider:
            provider, name = _PROVIDERS[word], name[match.end() :]
        elif word == "ft" or provider or match[0].endswith(":"):
            # A part of the model's own name: "groq/openai/gpt-oss-120b", "qwen2.5:7b".
            break
        else:
            return None, name
    return provider, name


def _spellings(model: str) -> list[str]:
    """The names under which a model may be in the catalogue, the most exact first."""
    if model.startswith("ft:"):
        # The parts behind are the customer's own. A fine-tuned model does not cost what its base costs.
        return [":".join(model.split(":")[:2])]
    release = _RELEASE.fullmatch(model)
    if release is None or model in _OTHER_PRICE:
        return [model]
    return [model, release[1]]


def _entry(entry: Mapping[str, Any]) -> _Entry:
    rates = [{"above": -1, **entry}, *entry.get("tiers", ())]
    window = tuple(time.fromisoformat(text) for text in entry.get("window", ()))
    if window and not (len(window) == 2 and window[0] < window[1]):
        raise ValueError(f"no part of a day: {entry}")
    return _Entry(
        rates=tuple(
            _Rate(rate["above"], _per_token(rate["input"]), _per_token(rate["output"]))
            for rate in sorted(rates, key=lambda rate: -int(rate["above"]))
        ),
        start=date.fromisoformat(entry["from"]) if "from" in entry else None,
        window=(window[0], window[1]) if window else None,
    )


def _per_token(usd_per_million: str) -> Decimal:
    return Decimal(usd_per_million).scaleb(-6, _EXACT)
