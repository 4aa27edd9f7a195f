"""Reads the product catalog from the files of the original benchmark."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from sad.errors import InputError

# Product file and attribute file with their Google Drive ids. The small catalog is the default of the original.
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


class Instruction(NamedTuple):
    """An instruction without its price limit.

    Attributes:
        text: The instruction.
        attributes: The requested attributes.
        options: The requested option values.
    """

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] = ()


class Review(NamedTuple):
    """A review: its title, the number of stars, and its text."""

    title: str
    stars: str
    text: str


@dataclass(frozen=True)
class Product:
    """A product. Pages show the fields up to `reviews`; goals and rewards use the others.

    Attributes:
        asin: The product number.
        title: The title.
        description: A paragraph, or "".
        features: The bullet points.
        prices: One price, or the minimum and maximum of a range, in dollars.
        price_tag: The price as pages show it.
        options: Option name -> values, all in lower case.
        rating: The rating as pages show it.
        reviews: The reviews from `reviews.json`, if the folder has this file.
        attributes: The attributes.
        category: One of the five categories of the shop.
        query: The search that found the product when the catalog was made.
        departments: The parts of its path in the shop's category tree.
        synthetic: The instruction generated from its attributes, if there is one.
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
    synthetic: Instruction | None
    human: tuple[Instruction, ...]


class Catalog(NamedTuple):
    """The products of a folder, and one message per unusable product."""

    products: list[Product]
    skipped: list[str]


def read_catalog(root: str | PathLike[str] | None, catalog: str | None, *, human: bool) -> Catalog:
    """Reads the original's files: products, attributes with synthetic instructions, and human instructions.

    As in the original, only the first of several products with the same ASIN is kept, and products with an invalid ASIN are
    left out.

    Args:
        root: The folder.
        catalog: `"small"` (1,000 products) or `"all"`. None selects the small catalog if its file exists.
        human: Whether to read the human instructions.

    Raises:
        InputError: A file is missing or not JSON (the message has the download command), or has no usable product.
    """
    folder = _folder(root)
    if catalog is None:
        catalog = next((name for name, files in _CATALOGS.items() if (folder / files[0][0]).is_file()), "small")
    items_file, attributes_file = _CATALOGS[catalog]
    items = _read(folder, *items_file, kind=list)
    attributes = _read(folder, *attributes_file, kind=dict)
    instructions = _read(folder, *_HUMAN, kind=dict) if human else {}
    reviews = _read(folder, _REVIEWS, "", kind=list) if (folder / _REVIEWS).is_file() else []
    reviews_of = {asin: one for one in reviews if isinstance(one, dict) and isinstance(asin := one.get("asin"), str)}
    products: dict[str, Product] = {}
    skipped: list[str] = []
    for number, item in enumerate(items):
        asin = item.get("asin") if isinstance(item, dict) else None
        if isinstance(asin, str) and (asin in products or asin == "nan" or len(asin) > _ASIN_LENGTH):
            continue
        try:
            _text(asin)
            product = _product(item, attributes.get(asin), instructions.get(asin), reviews_of.get(asin))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            skipped.append(f"{items_file[0]}, product {number} ({str(asin)[:40]}): {type(error).__name__}: {error}")
            continue
        products[product.asin] = product
    if not products:
        first = f", the first: {skipped[0]}" if skipped else ""
        raise InputError(
            str(folder / items_file[0]), "products", f"no usable product{first}", _download_command(folder, *items_file)
        )
    return Catalog(list(products.values()), skipped)


def _folder(root: str | PathLike[str] | None) -> Path:
    folder = Path("webshop" if root is None else root)
    if root is None or not folder.is_dir():
        got = "None" if root is None else f"no such folder: {str(root)!r}"
        remedy = f"Create the folder. {_download_command(folder, *_CATALOGS['small'][0])}"
        raise InputError("root", "the folder with WebShop's data", got, remedy)
    return folder


def _read(folder: Path, name: str, drive_id: str, *, kind: type) -> Any:
    path = folder / name
    if not path.is_file():
        raise InputError(
            "root", f"{name} in {str(folder)!r}", "a folder without it", _download_command(folder, name, drive_id)
        )
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), "JSON", str(error), _download_command(folder, name, drive_id)) from None
    if not isinstance(content, kind):
        wanted = "a JSON list" if kind is list else "a JSON object"
        raise InputError(str(path), wanted, f"a {type(content).__name__}", _download_command(folder, name, drive_id))
    return content


def _download_command(folder: Path, name: str, drive_id: str) -> str:
    """Returns the download command of a file. `reviews.json` has no download."""
    if not drive_id:
        return f"Fix or remove {name}."
    return f"Get {name} with `pip install gdown` and `gdown {drive_id} -O {folder / name}`"


def _product(item: dict[str, Any], known: dict[str, Any] | None, human: list[Any] | None, review: Any) -> Product:
    """Builds a product. Raises KeyError, TypeError, ValueError, AttributeError or IndexError for a malformed record."""
    known, small = known or {}, item["small_description"]
    prices, price_tag = _pricing(item.get("pricing"))
    synthetic = None
    if known.get("instruction"):
        synthetic = Instruction(known["instruction"], _texts(known["instruction_attributes"]))
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


def _human(one: dict[str, Any]) -> Instruction:
    options = one["instruction_options"]
    values = options.values() if isinstance(options, dict) else options
    return Instruction(_text(one["instruction"]), _texts(one["instruction_attributes"]), _texts(values))


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
    """Returns the option values as in the original: in lower case, with ` | ` for a slash, which its URLs cannot contain."""
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
