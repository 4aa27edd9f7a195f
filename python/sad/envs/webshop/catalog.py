"""The shop's products, read from the files of the original benchmark."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from sad.errors import InputError

# product file, attribute file, and what gdown calls them; the small catalogue is the original's default
_CATALOGS = {
    "small": (
        ("items_shuffle_1000.json", "1EgHdxQ_YxqIQlvvq5iKlCrkEKR6-j0Ib"),
        ("items_ins_v2_1000.json", "1IduG0xl544V_A_jv3tHXC0kyFi7PnyBu"),
    ),
    "all": (
        ("items_shuffle.json", "1A2whVgOO0euk5O13n2iYDM0bQRkkRduB"),
        ("items_ins_v2.json", "1s2j6NgHljiZzQNL3veZaAiyW_qDEgBNi"),
    ),
}
CATALOGS = tuple(_CATALOGS)
_HUMAN = ("items_human_ins.json", "14Kb5SPBk_jfdLZ_CDBNitW98QLDlKR5O")
_REVIEWS = "reviews.json"
_DEFAULT_PRICE = 100.0
_ASIN_LENGTH = 10


class Request(NamedTuple):
    """What somebody wants of a product, before a price is added.

    Attributes:
        text: The instruction.
        attributes: The attributes it asks for.
        options: The option values it asks for.
    """

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] = ()


class Review(NamedTuple):
    """One review: its title, the stars given, and its text."""

    title: str
    stars: str
    text: str


@dataclass(frozen=True)
class Product:
    """A product as the shop shows it, and what only the judge knows.

    Attributes:
        asin: The product's number.
        title: Its name.
        description: A paragraph, or "".
        features: The bullet points.
        prices: One price, or the two ends of a range, in dollars.
        price_tag: The price as pages show it.
        options: The values of each option, in lower case; names in lower case too.
        rating: As pages show it.
        reviews: From `reviews.json`, if the folder has it.
        attributes: What it is known to be; hidden.
        category: One of the five departments; hidden.
        query: The search by which it was found when the catalogue was made; hidden.
        departments: The parts of its place in the shop's tree; hidden.
        synthetic: The instruction made from its attributes, if there is one.
        human: The instructions that people wrote for it.
    """

    asin: str
    title: str
    description: str
    features: tuple[str, ...]
    prices: tuple[float, ...]
    price_tag: str
    options: dict[str, tuple[str, ...]]
    rating: str
    reviews: tuple[Review, ...]
    attributes: tuple[str, ...]
    category: str
    query: str
    departments: frozenset[str]
    synthetic: Request | None
    human: tuple[Request, ...]


class Catalog(NamedTuple):
    """The products of a folder, and for each that cannot be used, which and why."""

    products: list[Product]
    skipped: list[str]


def read_catalog(root: str | PathLike[str] | None, catalog: str | None, *, human: bool) -> Catalog:
    """Reads the original's files: products, attributes with synthetic instructions, and the instructions of people.

    As in the original, only the first of several products with one number is kept, and none with an impossible number.

    Args:
        root: The folder.
        catalog: `"small"` (1,000 products) or `"all"`; None takes the small one if it is there.
        human: Whether the instructions of people are needed.

    Raises:
        InputError: A file is missing or no JSON; the message has the command that gets it. Or nothing in it can be used.
    """
    folder = _folder(root)
    if catalog is None:
        catalog = next((name for name, files in _CATALOGS.items() if (folder / files[0][0]).is_file()), "small")
    items_file, attributes_file = _CATALOGS[catalog]
    items = _read(folder, *items_file, kind=list)
    attributes = _read(folder, *attributes_file, kind=dict)
    instructions = _read(folder, *_HUMAN, kind=dict) if human else {}
    reviews = _read(folder, _REVIEWS, "", kind=list) if (folder / _REVIEWS).is_file() else []
    reviews_of = {review.get("asin"): review for review in reviews if isinstance(review, dict)}
    products: dict[str, Product] = {}
    skipped: list[str] = []
    for number, item in enumerate(items):
        asin = item.get("asin") if isinstance(item, dict) else None
        if asin in products or asin == "nan" or (isinstance(asin, str) and len(asin) > _ASIN_LENGTH):
            continue
        try:
            product = _product(item, attributes.get(asin), instructions.get(asin), reviews_of.get(asin))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            skipped.append(f"{items_file[0]}, product {number} ({asin}): {type(error).__name__}: {error}")
            continue
        products[product.asin] = product
    if not products:
        first = f", the first: {skipped[0]}" if skipped else ""
        raise InputError(
            str(folder / items_file[0]), "products", f"none that can be used{first}", _get_it(folder, *items_file)
        )
    return Catalog(list(products.values()), skipped)


def _folder(root: str | PathLike[str] | None) -> Path:
    folder = Path("webshop" if root is None else root)
    if root is None or not folder.is_dir():
        got = "None" if root is None else f"no such folder: {str(root)!r}"
        remedy = f"Make it, and: {_get_it(folder, *_CATALOGS['small'][0])}"
        raise InputError("root", "the folder with WebShop's data", got, remedy)
    return folder


def _read(folder: Path, name: str, drive_id: str, *, kind: type) -> Any:
    path = folder / name
    if not path.is_file():
        raise InputError("root", f"{name} in {str(folder)!r}", "a folder without it", _get_it(folder, name, drive_id))
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), "JSON", str(error), _get_it(folder, name, drive_id)) from None
    if not isinstance(content, kind):
        wanted = "a JSON list" if kind is list else "a JSON object"
        raise InputError(str(path), wanted, f"a {type(content).__name__}", _get_it(folder, name, drive_id))
    return content


def _get_it(folder: Path, name: str, drive_id: str) -> str:
    """The command that downloads a file; `reviews.json` is not offered for download."""
    if not drive_id:
        return f"Mend or remove {name}."
    return f"Get it with `pip install gdown` and `gdown {drive_id} -O {folder / name}`"


def _product(item: dict[str, Any], known: dict[str, Any] | None, human: list[Any] | None, review: Any) -> Product:
    """One product; raises an ordinary error where the record is not as it should be."""
    known, small = known or {}, item["small_description"]
    prices, price_tag = _pricing(item.get("pricing"))
    synthetic = None
    if known.get("instruction"):
        synthetic = Request(known["instruction"], _texts(known["instruction_attributes"]))
        if not synthetic.attributes:
            raise ValueError("an instruction without attributes")
    return Product(
        asin=_text(item["asin"]),
        title=_text(item["name"]),
        description=_text(item["full_description"]),
        features=_texts(small if isinstance(small, list) else [small]),
        prices=prices,
        price_tag=price_tag,
        options=_options(item["customization_options"]),
        rating=str(review["average_rating"]) if review else "N.A.",
        reviews=tuple(_review(one) for one in review["reviews"]) if review else (),
        attributes=_texts(known.get("attributes", ["DUMMY_ATTR"])),
        category=_text(item["category"]),
        query=_text(item["query"]).lower().strip(),
        departments=frozenset(part.strip() for part in _text(item["product_category"]).split("›")),
        synthetic=synthetic,
        human=tuple(map(_human, (one for one in human or () if one["instruction_attributes"]))),  # as in the original
    )


def _human(one: dict[str, Any]) -> Request:
    options = one["instruction_options"]
    values = options.values() if isinstance(options, dict) else options
    return Request(_text(one["instruction"]), _texts(one["instruction_attributes"]), _texts(values))


def _pricing(pricing: str | None) -> tuple[tuple[float, ...], str]:
    if not pricing:
        return (_DEFAULT_PRICE,), f"${_DEFAULT_PRICE}"
    prices = tuple(float(re.sub(r"[^\d.]", "", price)) for price in pricing.split("$")[1:])
    if not prices:
        raise ValueError(f"no price in {pricing!r}")
    if len(prices) == 1:
        return prices, f"${prices[0]}"
    return prices[:2], f"${prices[0]} to ${prices[1]}"


def _options(groups: Any) -> dict[str, tuple[str, ...]]:
    """Option values as the original writes them: lower case, and ` | ` for a slash, which its addresses cannot hold."""
    return {
        name.lower(): tuple(_text(value["value"]).strip().replace("/", " | ").lower() for value in values)
        for name, values in (groups or {}).items()
        if values is not None
    }


def _review(review: dict[str, Any]) -> Review:
    stars = review["score"] if "score" in review else review["stars"]
    return Review(_text(review["title"]), str(stars), _text(review.get("review", review.get("body", ""))))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text expected, not {value!r:.60}")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(_text(value) for value in values)
