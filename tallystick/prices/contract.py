"""A contract with a customer in a YAML file, read like a price list: with the place of everything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import yaml

from tallystick._convert import timestamp_of
from tallystick.metering.v1 import contract_pb2
from tallystick.money import Money
from tallystick.prices import nodes
from tallystick.prices.document import PERIODS
from tallystick.prices.file import PriceFile, PriceFileError, Reader, text_of_file
from tallystick.prices.nodes import Problems

_IDS: Final = (
    ("contract", "contract_id", "con_acme"),
    ("customer", "customer_id", "cus_acme"),
    ("organization", "organization_id", "org_acme"),
)
_CURRENCY: Final = re.compile(r"[A-Z]{3}", re.ASCII)


class ContractFile(PriceFile):
    """What a file says: a contract."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.contract = contract_pb2.Contract()


def read_contract(path: Path) -> ContractFile:
    """Read a file. Raises PriceFileError with everything that is wrong, and OSError."""
    return parse_contract(text_of_file(path), str(path))


def parse_contract(text: str, path: str = "contract.yaml") -> ContractFile:
    """Read the text of a file. Raises PriceFileError with everything that is wrong."""
    problems = Problems()
    found = ContractFile(path)
    if (node := nodes.root(text, problems)) is not None:
        _ContractReader(found, problems, text.splitlines()).contract(node)
    if problems:
        raise PriceFileError(path, list(problems))
    return found


class _ContractReader(Reader):
    """Makes the message of the nodes."""

    def __init__(self, found: ContractFile, problems: Problems, lines: list[str]) -> None:
        super().__init__(found, problems, lines)
        self._contract = found.contract

    def contract(self, node: yaml.Node) -> None:
        """Read the document."""
        says = nodes.mapping(node, self._problems, "a contract")
        if says is None:
            return
        says.known(
            *("contract", "customer", "organization", "currency", "billing_period", "from", "until"),
            *("book", "version", "discounts", "includes", "period_maximum", "credit_limit", "terms"),
        )
        made = self._contract
        for key, field, such in _IDS:
            if key in says:
                self._at(f"contract.{field}", says[key])
                setattr(made, field, self._text(says[key]))
                prefix = such.partition("_")[0]
                self._check(says[key], rf"{prefix}_[A-Za-z0-9_.-]{{1,59}}", f'must be an id such as "{such}"')
        for key in ("customer", "currency"):
            if key not in says:
                self._problems.add(node, f"a contract needs {key!r}")
        if "currency" in says:
            self._at("contract.currency_code", says["currency"])
            made.currency_code = self._text(says["currency"])
            self._check(says["currency"], _CURRENCY.pattern, 'must be an ISO 4217 code such as "USD"')
        if "billing_period" in says:
            self._billing_period(says["billing_period"])
        for key, field, message in (
            ("from", "start_time", made),
            ("until", "end_time", made.content),
        ):
            if key in says and (time := self._time(says[key])) is not None:
                getattr(message, field).CopyFrom(timestamp_of(time))
        self._content(says)

    def _billing_period(self, node: yaml.Node) -> None:
        self._at("contract.billing_period", node)
        says = nodes.mapping(node, self._problems, "a billing period")
        if says is None:
            return
        says.known("unit", "anchor", "time_zone")
        period = self._contract.billing_period
        if says.one_of("unit"):
            period.unit = self._word(says["unit"], PERIODS)
        if "anchor" in says and (time := self._time(says["anchor"])) is not None:
            period.anchor_time.CopyFrom(timestamp_of(time))
        if "time_zone" in says:
            self._at("contract.billing_period.time_zone", says["time_zone"])
            period.time_zone = self._text(says["time_zone"])

    def _content(self, says: nodes.Mapping) -> None:
        content, path = self._contract.content, "contract.content"
        if ("book" in says or "version" in says) and (key := says.one_of("book", "version")):
            field = {"book": "price_book_id", "version": "price_version_id"}[key]
            self._at(f"{path}.{field}", says[key])
            setattr(content, field, self._text(says[key]))
        if "discounts" in says:
            self._at(f"{path}.discounts", says["discounts"])
            content.discounts.extend(
                self._named(f"{path}.discounts", says["discounts"], "discounts", self._discount)
            )
        if "includes" in says:
            self._at(f"{path}.allowances", says["includes"])
            includes = nodes.mapping(says["includes"], self._problems, "what is included")
            for _, key_node, value in includes.items() if includes is not None else ():
                here = f"{path}.allowances[{len(content.allowances)}]"
                self._at(here, key_node)
                self._allowance(here, key_node, value, content.allowances.add())
        for key in ("period_maximum", "credit_limit"):
            if key in says and (amount := self._money(f"{path}.{key}", says[key]).amount):
                if not _CURRENCY.fullmatch(self._contract.currency_code):
                    continue
                money = getattr(content, key)
                money.currency_code = self._contract.currency_code
                money.amount_micros = Money.of(amount, self._contract.currency_code).micros
        if "terms" in says:
            self._at(f"{path}.recorded_terms", says["terms"])
            terms = nodes.mapping(says["terms"], self._problems, "terms")
            for name, _, value in terms.items() if terms is not None else ():
                content.recorded_terms[name] = self._text(value)
