"""WebShop data folders for tests: hand-made ones, and the original's catalog from the shared data."""

from __future__ import annotations

import gzip
import json

from ...conftest import SHARED_DATA

SHARED = SHARED_DATA / "webshop"
NAMES = ("items_shuffle_1000.json", "items_ins_v2_1000.json", "items_human_ins.json")


def item(asin, name, **fields):
    """Returns a product record in the original's layout."""
    options = {k: [{"value": v} for v in vs] for k, vs in fields.pop("options", {}).items()}
    record = {"asin": asin, "name": name, "full_description": "", "small_description": [], "pricing": "$10.00"}
    record |= {"category": "fashion", "query": "socks", "product_category": "Shop › Clothing › Socks"}
    return record | {"customization_options": options} | fields


def attribute_record(attributes, instruction=None):
    """Returns the attribute record of a product, with a synthetic instruction if one is given."""
    known = {"attributes": attributes}
    return known | ({"instruction": instruction, "instruction_attributes": attributes} if instruction else {})


def write_shop(folder, items, known, human=None):
    """Writes a data folder in the original's layout."""
    for name, content in zip(NAMES, (items, known, human)):
        if content is not None:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_shared(folder):
    """Writes the shared catalog, which has one product per line, in the original's layout."""
    with gzip.open(SHARED / "catalog_1000.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    keys = ("attributes", "instruction", "instruction_attributes")
    known = {line["item"]["asin"]: {key: line[key] for key in keys if line[key] is not None} for line in lines}
    human = {line["item"]["asin"]: line["human_instructions"] for line in lines if line["human_instructions"]}
    return write_shop(folder, [line["item"] for line in lines], known, human)


def recorded():
    """Returns the recorded episodes of the original environment."""
    with gzip.open(SHARED / "original_env_scripted.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
