"""A price list in a YAML file.

It is read with the place of everything, so that each mistake is shown where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from google.protobuf.duration_pb2 import Duration

from tallystick._convert import timestamp_of
from tallystick.metering.v1 import price_book_pb2 as pb
from tallystick.prices import nodes
from tallystick.prices.document import (
    OUTCOMES,
    PERIODS,
    ROUNDINGS,
    TIER_MODES,
    TIER_SCOPES,
    TOKEN_KINDS,
    Document,
    document,
)
from tallystick.prices.nodes import MAX_FILE_BYTES, Place, Problem, Problems

T = TypeVar("T")

# Strictly decimal, as the service takes it: no sign, exponent, separator, infinity, or leading zero.
# Only underscores may group thousands, here and in counts; they do not travel.
_DECIMAL: Final = r"(?:0|[1-9][0-9]{0,2}(?:_[0-9]{3}){1,3}|[1-9][0-9]{0,11})(?:\.[0-9]{1,12})?"
_COUNT: Final = r"(?:0|[1-9][0-9]{0,2}(?:_[0-9]{3})+|[1-9][0-9]*)"
_AMOUNT: Final = re.compile(rf"({_DECIMAL})(?:\s+per\s+({_COUNT}))?", re.ASCII)
_WHOLE: Final = re.compile(_COUNT, re.ASCII)
_PERCENT: Final = re.compile(r"(0|[1-9][0-9]{0,2})(?:\.([0-9]{1,2}))?\s*%", re.ASCII)
_SPAN: Final = re.compile(r"([1-9][0-9]{0,7})([dhms])", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_METER: Final = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)
_SECONDS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_MAX_PER_UNITS: Final = 10**12
# Of what is compared with, or taken off, whole amounts: a micro is the smallest that there is.
_MICROS: Final = re.compile(r"[0-9]{1,8}(?:\.[0-9]{1,6})?", re.ASCII)
_MAX_COUNT: Final = 2**63 - 1
# How the service begins what it finds wrong within a condition.
_WITHIN: Final = re.compile(r"line (\d+), column (\d+): (.*)", re.DOTALL)
_MAX_DEFERRAL: Final = 90 * 86_400
_BONUS_OUTCOMES: Final = {word: OUTCOMES[word] for word in ("success", "failure", "partial")}
_PRICE_KEYS: Final = (
    *("name", "actions", "agents", "components", "outcomes", "discounts"),
    *("minimum", "maximum", "period_minimum", "period_maximum", "pending"),
)
_KINDS: Final = ("fee", "tokens", "meter", "bonus")


class PriceFileError(Exception):
    """A file that says no valid price list: everything that is wrong with it, in its order."""

    def __init__(self, path: str, problems: list[Problem]) -> None:
        self.path = path
        self.problems = problems
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """ "book.yaml:7:12: must be …", for each problem."""
        return [f"{self.path}:{at.line}:{at.column}: {reason}" for at, reason in self.problems]


class PriceFile:
    """What a file says: which book, and the price list of its next version."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.price_book_id = ""
        # Empty for the platform's own book.
        self.organization_id = ""
        self.currency_code = ""
        self.display_name = ""
        # Whether it prices only what contracts name it for.
        self.for_contracts = False
        self.prices: list[pb.Price] = []
        self.meters: list[pb.MeterFormula] = []
        self.plans: list[pb.Plan] = []
        # Where each field of the contract stands: "prices[0].components[1].condition".
        self.places: dict[str, Place] = {}
        # Where the lines of a condition begin, if they stand as they are: not folded, nor with escapes.
        self.condition_lines: dict[str, list[Place]] = {}

    @property
    def document(self) -> Document:
        """What the version says, for comparing."""
        return document(self.prices, self.meters, self.plans)

    def problem(self, field: str, reason: str) -> Problem:
        """What the service finds wrong with a field, where the file says it."""
        if (within := _WITHIN.fullmatch(reason)) and field in self.condition_lines:
            line, column = int(within[1]), int(within[2])
            if line <= len(self.condition_lines[field]):
                start = self.condition_lines[field][line - 1]
                return Problem(Place(start.line, start.column + column - 1), within[3])
        at = field
        while at and at not in self.places:
            at = at[: max(at.rfind("."), at.rfind("["), 0)]
        rest = field.removeprefix(at).lstrip(".")
        return Problem(self.places.get(at, Place(1, 1)), f"{rest}: {reason}" if rest and not at else reason)


def read(path: Path) -> PriceFile:
    """Read a file. Raises PriceFileError with everything that is wrong, and OSError."""
    return parse(text_of_file(path), str(path))


def text_of_file(path: Path) -> str:
    """The text of a file. Raises PriceFileError if it is too large or no text, and OSError."""
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise PriceFileError(str(path), [Problem(Place(1, 1), f"is larger than {MAX_FILE_BYTES} bytes")])
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise PriceFileError(str(path), [Problem(Place(line, column), "is not UTF-8")]) from None


def parse(text: str, path: str = "book.yaml") -> PriceFile:
    """Read the text of a file. Raises PriceFileError with everything that is wrong."""
    problems = Problems()
    found = PriceFile(path)
    if (node := nodes.root(text, problems)) is not None:
        try:
            Reader(found, problems, text.splitlines()).book(node)
        except RecursionError:
            problems.add(Place(1, 1), "is nested too deeply")
    if problems:
        raise PriceFileError(path, list(problems))
    return found


class Reader:
    """Makes messages of nodes. What is wrong becomes a problem, and an empty message in its place."""

    def __init__(self, found: PriceFile, problems: Problems, lines: list[str]) -> None:
        self._found = found
        self._problems = problems
        self._lines = lines

    def book(self, node: yaml.Node) -> None:
        top = nodes.mapping(node, self._problems, "a price book")
        if top is None:
            return
        top.known("book", "organization", "currency", "name", "for_contracts", "meters", "prices", "plans")
        found = self._found
        for key, field in (
            ("book", "price_book_id"),
            ("organization", "organization_id"),
            ("currency", "currency_code"),
            ("name", "display_name"),
        ):
            if key in top:
                self._at(field, top[key])
                setattr(found, field, self._text(top[key]))
        if "for_contracts" in top:
            self._at("for_contracts", top["for_contracts"])
            found.for_contracts = self._word(top["for_contracts"], {"true": True, "false": False})
        for key in ("book", "currency", "prices"):
            if key not in top:
                self._problems.add(node, f"a price book needs {key!r}")
        self._check(top.get("book"), r"pb_[A-Za-z0-9_-]{1,61}", 'must be an id such as "pb_acme"')
        self._check(top.get("organization"), r"org_[A-Za-z0-9_-]{1,60}", 'must be an id such as "org_acme"')
        self._check(top.get("currency"), r"[A-Z]{3}", 'must be an ISO 4217 code such as "USD"')
        if "meters" in top:
            self._at("meters", top["meters"])
            found.meters = self._named("meters", top["meters"], "meters", self._formula)
        if "prices" in top:
            self._at("prices", top["prices"])
            found.prices = self._named("prices", top["prices"], "prices", self._price)
            if isinstance(top["prices"], yaml.SequenceNode) and not top["prices"].value:
                self._problems.add(top["prices"], "needs at least one price")
        if "plans" in top:
            self._at("plans", top["plans"])
            found.plans = self._named("plans", top["plans"], "plans", self._plan)

    # What lists hold.

    def _price(self, path: str, says: nodes.Mapping) -> pb.Price:
        says.known(*_PRICE_KEYS)
        price = pb.Price(name=self._name(f"{path}.name", says))
        for key, field in (("actions", "action_types"), ("agents", "agent_ids")):
            if key in says:
                self._at(f"{path}.selector.{field}", says[key])
                getattr(price.selector, field).extend(self._texts(says[key], key))
        if "components" in says:
            self._at(f"{path}.components", says["components"])
            price.components.extend(
                self._named(f"{path}.components", says["components"], "components", self._component)
            )
        if not price.components:
            self._problems.add(says.get("components") or says.node, "a price needs at least one component")
        if "outcomes" in says:
            price.outcome_factors.extend(self._factors(f"{path}.outcome_factors", says["outcomes"]))
        if "discounts" in says:
            self._at(f"{path}.discounts", says["discounts"])
            price.discounts.extend(
                self._named(f"{path}.discounts", says["discounts"], "discounts", self._discount)
            )
        for key in ("minimum", "maximum", "period_minimum", "period_maximum"):
            if key in says:
                getattr(price, key).CopyFrom(self._money(f"{path}.{key}", says[key]))
        if "pending" in says:
            self._pending(f"{path}.deferral", says["pending"], price)
        return price

    def _component(self, path: str, says: nodes.Mapping) -> pb.PriceComponent:
        component = pb.PriceComponent(name=self._name(f"{path}.name", says))
        if "when" in says:
            self._at(f"{path}.condition", says["when"])
            component.condition = self._text(says["when"])
            self._found.condition_lines[f"{path}.condition"] = self._lines_of(says["when"])
        kind = says.one_of(*_KINDS)
        match kind:
            case "fee":
                says.known("name", "fee", "when")
                self._at(f"{path}.base_fee", says["fee"])
                component.base_fee.price.CopyFrom(
                    self._amount(f"{path}.base_fee.price", says["fee"], is_rate=False)
                )
            case "tokens":
                says.known("name", "tokens", "price", "when")
                self._at(f"{path}.token_rate.token_kind", says["tokens"])
                component.token_rate.token_kind = self._word(says["tokens"], TOKEN_KINDS)
                if says.one_of("price"):
                    component.token_rate.price.CopyFrom(
                        self._amount(f"{path}.token_rate.price", says["price"])
                    )
            case "bonus":
                says.known("name", "bonus", "outcome", "when")
                self._at(f"{path}.outcome_bonus", says["bonus"])
                component.outcome_bonus.price.CopyFrom(
                    self._amount(f"{path}.outcome_bonus.price", says["bonus"], is_rate=False)
                )
                if "outcome" in says:
                    self._at(f"{path}.outcome_bonus.outcome", says["outcome"])
                    component.outcome_bonus.outcome = self._word(says["outcome"], _BONUS_OUTCOMES)
                elif "when" not in says:
                    self._problems.add(says.node, "a bonus needs 'outcome' or 'when': what it is paid for")
            case "meter":
                says.known("name", "meter", "models", *TIER_MODES, "entry_fee", "scope", "when")
                self._meter_rate(f"{path}.meter_rate", says, component.meter_rate)
        return component

    def _meter_rate(self, path: str, says: nodes.Mapping, rate: pb.MeterRate) -> None:
        self._at(path, says["meter"])
        rate.meter = self._meter(f"{path}.meter", says["meter"])
        if "models" in says:
            self._at(f"{path}.models", says["models"])
            rate.models.extend(self._texts(says["models"], "models"))
        if "scope" in says:
            self._at(f"{path}.tier_scope", says["scope"])
            rate.tier_scope = self._word(says["scope"], TIER_SCOPES)
        mode = says.one_of(*TIER_MODES)
        if mode is None:
            return
        rate.tier_mode = TIER_MODES[mode]
        self._at(f"{path}.tiers", says[mode])
        if mode in ("graduated", "volume"):
            rate.tiers.extend(self._tiers(f"{path}.tiers", says[mode]))
            if "entry_fee" in says:
                self._problems.add(says.key("entry_fee"), "belongs to a tier here, below its 'price'")
            return
        tier = rate.tiers.add()
        tier.price.CopyFrom(self._amount(f"{path}.tiers[0].price", says[mode]))
        if "entry_fee" in says:
            tier.fee.CopyFrom(self._amount(f"{path}.tiers[0].fee", says["entry_fee"], is_rate=False))

    def _tiers(self, path: str, node: yaml.Node) -> list[pb.Tier]:
        tiers = []
        items = nodes.sequence(node, self._problems, "tiers")
        if isinstance(node, yaml.SequenceNode) and not items:
            self._problems.add(node, "needs at least one tier")
        reached: int | None = 0
        for index, item in enumerate(items):
            here = f"{path}[{index}]"
            self._at(here, item)
            tier = pb.Tier()
            tiers.append(tier)
            says = nodes.mapping(item, self._problems, "a tier")
            if says is None:
                continue
            says.known("up_to", "price", "entry_fee")
            if says.one_of("price"):
                tier.price.CopyFrom(self._amount(f"{here}.price", says["price"]))
            if "entry_fee" in says:
                tier.fee.CopyFrom(self._amount(f"{here}.fee", says["entry_fee"], is_rate=False))
            reached = self._tier_end(f"{here}.up_to", says, tier, reached, is_last=index == len(items) - 1)
        return tiers

    def _tier_end(
        self, path: str, says: nodes.Mapping, tier: pb.Tier, reached: int | None, *, is_last: bool
    ) -> int | None:
        """Where the tier ends, given where the one before it does; None for a tier without end."""
        if reached is None:
            self._problems.add(says.node, "is never reached: the tier before it has no 'up_to'")
            return None
        if "up_to" not in says:
            return None
        self._at(path, says["up_to"])
        tier.up_to = self._count(path, says["up_to"])
        if not tier.up_to:
            # Wrong, and told already: what follows is judged by what came before. Zero units are none.
            if nodes.text_of(says["up_to"]) == "0":
                self._problems.add(says["up_to"], "must be at least 1")
            return reached
        if tier.up_to <= reached:
            self._problems.add(says["up_to"], f"overlaps the tier before it, which goes up to {reached:_}")
            return reached
        if is_last:
            self._problems.add(says["up_to"], "the last tier has no 'up_to': it goes on for ever")
        return tier.up_to

    def _factors(self, path: str, node: yaml.Node) -> list[pb.OutcomeFactor]:
        self._at(path, node)
        says = nodes.mapping(node, self._problems, "outcomes")
        factors: list[pb.OutcomeFactor] = []
        if says is None:
            return factors
        says.known(*OUTCOMES)
        for name, key, value in says.items():
            if name in OUTCOMES:
                here = f"{path}[{len(factors)}]"
                self._at(here, key)
                factors.append(
                    pb.OutcomeFactor(
                        outcome=OUTCOMES[name], basis_points=self._percent(f"{here}.basis_points", value)
                    )
                )
        return factors

    def _discount(self, path: str, says: nodes.Mapping) -> pb.Discount:
        says.known("name", "percent", "amount", "volume", "from", "until")
        discount = pb.Discount(name=self._name(f"{path}.name", says))
        match says.one_of("percent", "amount", "volume"):
            case "percent":
                discount.basis_points = self._percent(f"{path}.basis_points", says["percent"], least=1)
            case "amount":
                discount.amount.CopyFrom(self._money(f"{path}.amount", says["amount"]))
            case "volume":
                discount.volume.SetInParent()
                discount.volume.steps.extend(self._steps(f"{path}.volume.steps", says["volume"]))
        for key, field in (("from", "start_time"), ("until", "end_time")):
            if (node := says.get(key)) is not None:
                self._at(f"{path}.{field}", node)
                if (time := self._time(node)) is not None:
                    getattr(discount, field).CopyFrom(timestamp_of(time))
        is_limited = discount.HasField("start_time") and discount.HasField("end_time")
        if is_limited and discount.end_time.ToDatetime() <= discount.start_time.ToDatetime():
            self._problems.add(says["until"], "must be after 'from'")
        return discount

    def _steps(self, path: str, node: yaml.Node) -> list[pb.VolumeDiscountStep]:
        self._at(path, node)
        steps = []
        before: Place | None = None
        reached = -1
        for index, item in enumerate(nodes.sequence(node, self._problems, "steps")):
            here = f"{path}[{index}]"
            self._at(here, item)
            step = pb.VolumeDiscountStep()
            steps.append(step)
            says = nodes.mapping(item, self._problems, "a step")
            if says is None:
                continue
            says.known("above", "percent")
            if says.one_of("percent"):
                step.basis_points = self._percent(f"{here}.basis_points", says["percent"], least=1)
            if says.one_of("above"):
                step.from_amount.CopyFrom(self._money(f"{here}.from_amount", says["above"]))
                above = _in_parts(step.from_amount.amount)
                if before is not None and above is not None and above <= reached:
                    self._problems.add(says["above"], f"must be more than in line {before.line}")
                if above is not None:
                    before, reached = nodes.place(says["above"]), above
        if not steps and isinstance(node, yaml.SequenceNode):
            self._problems.add(node, "needs at least one step")
        return steps

    def _pending(self, path: str, node: yaml.Node, price: pb.Price) -> None:
        self._at(path, node)
        says = nodes.mapping(node, self._problems, "what happens to pending outcomes")
        if says is None:
            return
        says.known("expire_after", "becomes")
        if "expire_after" in says:
            self._at(f"{path}.expire_after", says["expire_after"])
            price.deferral.expire_after.CopyFrom(Duration(seconds=self._span(says["expire_after"])))
        if "becomes" in says:
            self._at(f"{path}.expired_outcome", says["becomes"])
            price.deferral.expired_outcome = self._word(says["becomes"], OUTCOMES)

    def _formula(self, path: str, says: nodes.Mapping) -> pb.MeterFormula:
        says.known("name", "terms", "round")
        formula = pb.MeterFormula()
        if says.one_of("name"):
            formula.meter = self._meter(f"{path}.meter", says["name"])
        if "round" in says:
            self._at(f"{path}.rounding", says["round"])
            formula.rounding = self._word(says["round"], ROUNDINGS)
        if says.one_of("terms"):
            self._at(f"{path}.terms", says["terms"])
            terms = nodes.mapping(says["terms"], self._problems, "terms")
            for _, key, value in terms.items() if terms is not None else ():
                here = f"{path}.terms[{len(formula.terms)}]"
                self._at(here, key)
                meter = self._meter(f"{here}.meter", key)
                units = self._amount(f"{here}.units", value)
                formula.terms.add(meter=meter, units=units.amount, per_units=units.per_units)
            if terms is not None and not terms.node.value:
                self._problems.add(terms.node, "needs at least one term")
        return formula

    def _plan(self, path: str, says: nodes.Mapping) -> pb.Plan:
        says.known("name", "fee", "seat_fee", "period", "includes")
        plan = pb.Plan(name=self._name(f"{path}.name", says))
        for key in ("fee", "seat_fee"):
            if key in says:
                getattr(plan, key).CopyFrom(self._money(f"{path}.{key}", says[key]))
        if "period" in says:
            self._at(f"{path}.period_unit", says["period"])
            plan.period_unit = self._word(says["period"], PERIODS)
        if "includes" in says:
            self._at(f"{path}.allowances", says["includes"])
            includes = nodes.mapping(says["includes"], self._problems, "what is included")
            for _, key, value in includes.items() if includes is not None else ():
                here = f"{path}.allowances[{len(plan.allowances)}]"
                self._at(here, key)
                self._allowance(here, key, value, plan.allowances.add())
        return plan

    def _allowance(self, path: str, key: yaml.Node, value: yaml.Node, allowance: pb.Allowance) -> None:
        allowance.meter = self._meter(f"{path}.meter", key)
        if isinstance(value, yaml.ScalarNode):
            allowance.quantity = self._count(f"{path}.quantity", value)
            return
        says = nodes.mapping(value, self._problems, "an allowance")
        if says is None:
            return
        says.known("quantity", "per_seat")
        if "quantity" in says:
            allowance.quantity = self._count(f"{path}.quantity", says["quantity"])
        if "per_seat" in says:
            allowance.quantity_per_seat = self._count(f"{path}.quantity_per_seat", says["per_seat"])

    # Lists of what has names.

    def _named(
        self, path: str, node: yaml.Node, what: str, make: Callable[[str, nodes.Mapping], T]
    ) -> list[T]:
        made: list[T] = []
        seen: dict[str, Place] = {}
        for index, item in enumerate(nodes.sequence(node, self._problems, what)):
            here = f"{path}[{index}]"
            self._at(here, item)
            says = nodes.mapping(item, self._problems, f"a {what[:-1]}")
            if says is None:
                continue
            made.append(make(here, says))
            name = nodes.text_of(says["name"]) if "name" in says else None
            if name in seen:
                self._problems.add(says["name"], f"{name!r} is the name in line {seen[name].line} already")
            elif name is not None:
                seen[name] = nodes.place(says["name"])
        return made

    # Values.

    def _at(self, path: str, node: yaml.Node) -> None:
        self._found.places[path] = nodes.place(node)

    def _text(self, node: yaml.Node) -> str:
        text = nodes.text_of(node)
        if text is None or not text.strip():
            self._problems.add(node, "must be a text")
            return ""
        return text

    def _lines_of(self, node: yaml.Node) -> list[Place]:
        """Where the lines of a text begin; none if they do not stand there as they are."""
        at = nodes.place(node)
        style = getattr(node, "style", None)
        if style == "|":
            rest = self._lines[at.line :]
            indent = next((len(line) - len(line.lstrip()) for line in rest if line.strip()), 0)
            return [Place(at.line + 1 + number, indent + 1) for number in range(len(rest))]
        if node.end_mark.line != node.start_mark.line or style == ">":
            return []
        return [Place(at.line, at.column + (1 if style in ("'", '"') else 0))]

    def _texts(self, node: yaml.Node, what: str) -> list[str]:
        """A list of texts, or a single one."""
        if nodes.text_of(node):
            return [self._text(node)]
        return [self._text(item) for item in nodes.sequence(node, self._problems, what)]

    def _check(self, node: yaml.Node | None, pattern: str, reason: str) -> None:
        if node is not None and (text := nodes.text_of(node)) and not re.fullmatch(pattern, text):
            self._problems.add(node, reason)

    def _name(self, path: str, says: nodes.Mapping) -> str:
        if says.one_of("name") is None:
            return ""
        self._at(path, says["name"])
        name = self._text(says["name"])
        if name and not _NAME.fullmatch(name):
            self._problems.add(says["name"], "must be 1 to 64 letters, digits, '_', '.' or '-'")
        return name

    def _meter(self, path: str, node: yaml.Node) -> str:
        self._at(path, node)
        meter = self._text(node)
        if meter and not _METER.fullmatch(meter):
            self._problems.add(node, "must be a meter: 1 to 64 lowercase letters, digits and '_'")
        return meter

    def _word(self, node: yaml.Node, words: Mapping[str, Any]) -> Any:
        text = nodes.text_of(node) or ""
        if text not in words:
            self._problems.add(node, f"must be {', '.join(list(words)[:-1])} or {list(words)[-1]}")
            return 0
        return words[text]

    def _amount(self, path: str, node: yaml.Node, *, is_rate: bool = True) -> pb.UnitPrice:
        """0.60, or, for a rate, 0.60 per 1000000."""
        self._at(path, node)
        text = (nodes.text_of(node) or "").strip()
        found = _AMOUNT.fullmatch(text)
        if found is None:
            self._problems.add(node, _why_no_amount(text, is_rate=is_rate))
            return pb.UnitPrice()
        number, units = found[1].replace("_", ""), found[2]
        if units is None:
            return pb.UnitPrice(amount=number)
        per_units = int(units)
        if not is_rate:
            self._problems.add(node, "is an amount of money, not one per units")
        elif not 1 <= per_units <= _MAX_PER_UNITS:
            self._problems.add(node, f"must be per 1 to {_MAX_PER_UNITS:_} units")
        # One unit is what is meant without saying so: 0.
        return pb.UnitPrice(amount=number, per_units=0 if per_units == 1 else per_units)

    def _money(self, path: str, node: yaml.Node) -> pb.UnitPrice:
        """An amount in whole micros."""
        amount = self._amount(path, node, is_rate=False)
        if amount.amount and not _MICROS.fullmatch(amount.amount):
            self._problems.add(node, "must have at most 8 digits before and 6 after the point")
        return amount

    def _count(self, path: str, node: yaml.Node) -> int:
        self._at(path, node)
        text = (nodes.text_of(node) or "").strip()
        if not _WHOLE.fullmatch(text) or int(text) > _MAX_COUNT:
            self._problems.add(node, "must be a whole number, such as 1000 or 1_000")
            return 0
        return int(text)

    def _percent(self, path: str, node: yaml.Node, *, least: int = 0) -> int:
        """Basis points."""
        self._at(path, node)
        found = _PERCENT.fullmatch((nodes.text_of(node) or "").strip())
        points = -1 if found is None else int(found[1]) * 100 + int((found[2] or "").ljust(2, "0"))
        if not least <= points <= 10_000:
            self._problems.add(
                node,
                f"must be {'0' if not least else 'more than 0'} to 100 %, such as 12.5 %, in steps of 0.01 %",
            )
            return 0
        return points

    def _span(self, node: yaml.Node) -> int:
        """Seconds."""
        found = _SPAN.fullmatch((nodes.text_of(node) or "").strip())
        seconds = 0 if found is None else int(found[1]) * _SECONDS[found[2]]
        if not 1 <= seconds <= _MAX_DEFERRAL:
            self._problems.add(node, "must be 1s to 90d, such as 7d, 12h, 30m or 45s")
            return 0
        return seconds

    def _time(self, node: yaml.Node) -> datetime | None:
        try:
            time = datetime.fromisoformat((nodes.text_of(node) or "").strip())
        except ValueError:
            self._problems.add(node, "must be a date or a time, such as 2026-12-01 or 2026-12-01T09:30:00Z")
            return None
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _why_no_amount(text: str, *, is_rate: bool) -> str:
    if re.fullmatch(rf"-\s*{_DECIMAL}.*", text):
        return "must not be negative"
    such = "0.60 or 0.60 per 1000000" if is_rate else "0.60"
    return f"must be a decimal number such as {such}, with at most 12 digits before and 12 after the point"


def _in_parts(amount: str) -> int | None:
    """An amount as a whole number of its smallest parts, for comparing."""
    if not amount:
        return None
    whole, _, rest = amount.partition(".")
    return int(whole + rest.ljust(12, "0"))
