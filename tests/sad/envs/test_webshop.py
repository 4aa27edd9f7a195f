"""The rules of the shop with a hand-made catalog: search, pages, clicks, rewards, and errors."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import random
import re

import pytest

import sad
from sad.envs import make
from sad.errors import InputError

from .webshop_files import attribute_record, item, write_shop

pytest.importorskip("bm25s")
pytest.importorskip("rapidfuzz")

RED_SOCKS = item(
    "B000000001",
    "Acme Wool Knee Socks for Men",
    small_description=["Warm wool. Arch support! ", "Machine washable "],
    full_description="Knitted socks.",
    pricing="$8.00 to $12.00",
    options={"Color": ["Brown137", "Black/White", "Red"], "Size": ["S", "X-Large"]},
)
BLUE_SOCKS = item("B000000002", "Acme Cotton Socks", options={"Color": ["Blue"], "Size": ["S"]})
TENT = item("B000000003", "Hikers Tent", pricing="", query="tents", product_category="Shop › Outdoor › Tents")
MUG = item("B000000004", "Acme Mug", pricing="$1,100.50", query="mugs", product_category="Kitchen › Mugs")
KNOWN = {
    "B000000001": attribute_record(["machine wash", "arch support"], "Find me machine wash, arch support socks"),
    "B000000002": attribute_record(["cotton"]),
    "B000000003": attribute_record(["water proof"]),
    "B000000004": attribute_record(["dishwasher safe"], "Find me dishwasher safe mugs"),
}
FILLER = [item(f"B00000001{n}", f"Plain socks number {n}", options={}) for n in range(10)]
ASKED = {"instruction": "I want blue socks.", "instruction_attributes": ["cotton"], "instruction_options": ["blue"]}
HUMAN = {"B000000002": [ASKED]}


@pytest.fixture
def folder(tmp_path):
    return write_shop(tmp_path, [RED_SOCKS, BLUE_SOCKS, TENT, MUG, *FILLER], KNOWN, HUMAN)


def start(folder, goal="color: red, and size: x-large", **options):
    env = make("webshop", folder, "test", **options)
    task = next(task for task in env.tasks if goal in task.goal)
    env.reset(task)
    return env, task


def run(env, *actions):
    for action in actions:
        step = env.step(action)
    return step


def test_each_combination_of_options_is_a_goal(folder):
    env = make("webshop", folder, "test")
    goals = sorted(re.sub(r", and price lower than \d+.00 dollars", "", task.goal) for task in env.tasks)
    assert len(goals) == 3 * 2 + 1
    assert goals[0] == "Find me dishwasher safe mugs"  # its price is above all limits
    assert "Find me machine wash, arch support socks with color: black | white, and size: x-large" in goals
    assert {task.type for task in env.tasks} == {"fashion"}
    for task in env.tasks:
        limit = re.search(r"lower than (\d+)", task.goal)
        assert limit is None or 20 <= int(limit[1]) <= 50  # the second to fourth multiple of 10 above $8 to $12


def test_the_seed_changes_only_prices_and_limits(folder):
    envs = [make("webshop", folder, "test", seed=seed) for seed in (0, 0, 1, 2, 3, 4)]
    goals = [[task.goal for task in env.tasks] for env in envs]
    assert goals[0] == goals[1]
    assert any(goals[0] != other for other in goals[2:])
    plain = [[re.sub("lower than .*", "", goal) for goal in one] for one in goals]
    assert all(one == plain[0] for one in plain)


def test_human_goals(folder):
    (task,) = make("webshop", folder, "test", goals="human").tasks
    assert task.id == "human-0" and re.fullmatch(r"I want blue socks, and price lower than \d0.00 dollars", task.goal)


def test_search_ranks_by_okapi_bm25_with_a_floor(folder):
    """Compares with the formula. "socks" is in most products, "Acme" in few."""
    env, _ = start(folder)
    products = json.loads((folder / "items_shuffle_1000.json").read_text())
    documents = []
    for product in products:
        options = ", and ".join(
            f"{name.lower()}: {', '.join(v['value'].replace('/', ' | ') for v in values)}"
            for name, values in product["customization_options"].items()
        )
        parts = [product["name"], product["full_description"], *product["small_description"][:1], options]
        documents.append(re.findall(r"\w+", " ".join(parts).lower()))
    total, mean = len(documents), sum(map(len, documents)) / len(documents)
    weights = {}
    for word in {word for document in documents for word in document}:
        count = sum(word in document for document in documents)
        weights[word] = math.log((total - count + 0.5) / (count + 0.5))
    floor = 0.25 * sum(weights.values()) / len(weights)
    weights = {word: weight if weight >= 0 else floor for word, weight in weights.items()}

    def score(words, document):
        norm = 1.5 * (0.25 + 0.75 * len(document) / mean)
        return sum(weights.get(w, 0) * document.count(w) * 2.5 / (document.count(w) + norm) for w in words)

    for query in ("acme wool socks", "socks", "wool wool 7 socks", "blue red", "men s mug tent"):
        scores = {product["asin"]: score(query.split(), document) for product, document in zip(products, documents)}
        best = sorted((asin for asin in scores if scores[asin] > 0), key=lambda asin: -scores[asin])
        page = env.step(f"search[{query}]").observation.split(" [SEP] ")
        assert f"Page 1 (Total results: {len(best)})" in page
        assert [text for text in page if text in scores] == best[:10]
    assert "Total results: 0" in env.step("search[zzz]").observation


def test_pages_and_navigation(folder):
    env, task = start(folder)
    head = f"Instruction: [SEP] {task.goal} [SEP] Back to Search"
    product = f"{head} [SEP] < Prev [SEP] color [SEP] brown137 [SEP] black | white [SEP] red"
    product += " [SEP] size [SEP] s [SEP] x-large"
    product += " [SEP] Acme Wool Knee Socks for Men [SEP] Price: $8.0 to $12.0 [SEP] Rating: N.A."
    product += " [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    first = run(env, "search[acme wool socks]").observation
    assert first.startswith(f"{head} [SEP] Page 1 (Total results: 13) [SEP] Next > [SEP] B000000001 [SEP]")
    second = run(env, "click[Next >]").observation
    assert second.startswith(f"{head} [SEP] Page 2 (Total results: 13) [SEP] < Prev [SEP] B0")
    assert second.count("$10.0") + second.count("$1100.5") == 3
    assert run(env, "click[< prev]").observation == first
    assert run(env, "click[b000000001]").observation == product
    assert run(env, "click[red]", "click[description]").observation == f"{head} [SEP] < Prev [SEP] Knitted socks."
    assert run(env, "click[< prev]").observation == product
    features = f"{head} [SEP] < Prev [SEP] Warm wool. Arch support! [SEP] Machine washable"
    assert run(env, "click[features]").observation == features
    assert run(env, "click[< prev]", "click[reviews]").observation == f"{head} [SEP] < Prev [SEP] No reviews found"
    assert run(env, "click[< prev]", "click[< prev]").observation == first
    bought = run(env, "click[b000000001]", "click[size]", "click[x-large]", "click[buy now]")
    assert (
        '"size": "x-large"' in bought.observation and '"color"' not in bought.observation
    )  # leaving the product reset the color
    assert bought.done and not bought.info["won"] and env.admissible_commands == []
    assert bought.reward == pytest.approx(4 / 5) and bought.info["metrics"]["options"] == 0.5
    with pytest.raises(InputError, match="one that is over"):
        env.step("click[buy now]")


@pytest.mark.parametrize(
    "action", ["", "buy", "click[]", "click[nothing]", "search[]", "think[red]", "click[red", "click[search]", "x" * 10_000]
)
def test_an_unknown_action_shows_the_page_again(folder, action):
    env, _ = start(folder)
    page = env.step("search[socks]").observation
    step = env.step(action)
    assert step.observation == page and not step.info["valid"] and not step.done and step.reward == 0


def test_a_very_long_query_is_valid(folder):
    env, _ = start(folder)
    step = env.step(f"search[{'red socks ' * 1000}]")
    assert step.info["valid"] and "Page 1" in step.observation


def test_admissible_commands_are_valid_and_copies_are_independent(folder):
    env, task = start(folder)
    rng = random.Random(0)
    idle = copy.copy(env)
    before = idle.admissible_commands
    for _ in range(40):
        one = copy.copy(env)
        done = False
        while not done:
            action = rng.choice(one.admissible_commands)
            step = one.step(action)
            done = step.done
            assert step.info["valid"], action
            assert step.info["admissible_commands"] == one.admissible_commands
            assert "\n" not in step.observation
    assert idle.admissible_commands == before == [f"search[{task.goal.lower()}]"]


@pytest.mark.parametrize(
    ("goal", "actions", "parts"),
    [
        # type, attributes, options, price
        ("color: red, and size: x-large", ["b000000001", "red", "x-large"], (1, 1, 1, 1)),
        ("color: red, and size: x-large", ["b000000001", "black | white", "x-large"], (1, 1, 0.5, 1)),
        # the choice is reduced to its color, which is not similar to name and value
        ("color: brown137, and size: s", ["b000000001", "brown137", "s"], (1, 1, 0.5, 1)),
        ("color: black | white, and size: s", ["b000000001", "black | white", "s"], (1, 1, 1, 1)),
        ("color: red, and size: s", ["b000000002", "blue", "s"], (1, 0, 0.5, 1)),
        ("color: red, and size: s", ["b000000004"], (0.5, 0, 0, 0)),  # one noun of five in common
        ("color: red, and size: s", ["b000000003"], (0, 0, 0, 0)),
        ("dishwasher", ["b000000004"], (1, 1, 1, 1)),
    ],
)
def test_rewards(tmp_path, goal, actions, parts):
    tent = TENT | {"pricing": "$60.00"}
    shop = write_shop(tmp_path, [RED_SOCKS, BLUE_SOCKS, tent, MUG], KNOWN)
    env, _ = start(shop, goal)
    step = run(env, "search[acme tent socks mug]", *(f"click[{name}]" for name in actions), "click[buy now]")
    metrics = step.info["metrics"]
    type_score, attributes, options, price = parts
    assert (metrics["type"], metrics["attributes"], metrics["options"], metrics["price"]) == parts
    num_attributes, num_options = (1, 0) if goal == "dishwasher" else (2, 2)
    met = num_attributes * attributes + num_options * options + price
    expected = type_score * met / (num_attributes + num_options + 1)
    assert step.reward == metrics["score"] == pytest.approx(expected)
    assert step.info["won"] == (step.reward == 1) and f"[SEP] {step.reward} [SEP]" in step.observation


def test_the_nouns_option(tmp_path):
    shop = write_shop(tmp_path, [RED_SOCKS, BLUE_SOCKS, TENT, MUG], KNOWN)
    env, _ = start(shop, "color: red", nouns=lambda title: ["thing"])
    step = run(env, "search[mug]", "click[b000000004]", "click[buy now]")
    assert step.info["metrics"]["type"] == 1


def test_rich_pages_mark_clickable_elements(folder):
    env, task = start(folder, pages="rich")
    assert env.reset(task) == f"WebShop\nInstruction:\n{task.goal}\n[button] Search [button_]"
    page = run(env, "search[acme wool]", "click[b000000001]", "click[red]").observation.splitlines()
    assert page[0] == "You have clicked red."
    assert "[clicked button] red [clicked button_]" in page and "[button] brown137 [button_]" in page and "color" in page
    results = run(env, "click[< prev]").observation.splitlines()
    assert "[clicked button] B000000001 [clicked button_]" in results and "[button] B000000002 [button_]" in results


def test_reviews_and_ratings(folder):
    review = {"title": "Good", "stars": 5, "review": "Warm."}
    reviews = [{"asin": "B000000001", "average_rating": 4.5, "reviews": [review]}]
    (folder / "reviews.json").write_text(json.dumps(reviews))
    env, _ = start(folder)
    assert "Rating: 4.5" in run(env, "search[acme wool]", "click[b000000001]").observation
    assert run(env, "click[reviews]").observation.endswith('< Prev [SEP] "Good" [SEP] 5 [SEP] Warm.')


def test_broken_products_are_skipped_and_counted(tmp_path):
    broken = [{"asin": "B000000005"}, "no product", TENT | {"asin": "B000000006", "pricing": "$a"}]
    shop = write_shop(tmp_path, [*broken, RED_SOCKS, RED_SOCKS, RED_SOCKS | {"asin": "nan"}], KNOWN)
    with pytest.warns(UserWarning, match=r"3 products skipped; the first: .*, product 0 \(B000000005\): KeyError"):
        env = make("webshop", shop, "test")
    assert len(env.skipped) == 3 and len(env.tasks) == 6


def test_errors_for_missing_and_broken_files_name_the_download_command(tmp_path, folder):
    for root, got in ((None, "None"), (tmp_path / "none", "no such folder: ")):
        with pytest.raises(InputError, match=rf"got {got}.*`gdown 1EgH\S+ -O \S+items_shuffle_1000\.json`"):
            make("webshop", root)
    (folder / "items_human_ins.json").unlink()
    make("webshop", folder, "test")
    with pytest.raises(InputError, match=r"items_human_ins\.json in .*`gdown 14Kb5"):
        make("webshop", folder, "test", goals="human")
    (folder / "items_ins_v2_1000.json").write_text("{")
    with pytest.raises(InputError, match=r"items_ins_v2_1000\.json: expected JSON, got .*gdown 1Idu"):
        make("webshop", folder, "test")
    (folder / "items_ins_v2_1000.json").write_text("[]")
    with pytest.raises(InputError, match="a JSON object, got a list"):
        make("webshop", folder, "test")


def test_the_error_names_a_missing_library(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bm25s" else object())
    with pytest.raises(InputError, match=r"no bm25s\. Install them with `pip install .*\[webshop\]"):
        make("webshop", folder, "test")


def test_bad_arguments(folder):
    wrong = [("split", "dev"), ("goals", "all"), ("pages", "html"), ("catalog", "big"), ("tasks", 0), ("tasks", True)]
    for name, value in wrong:
        with pytest.raises(InputError, match=f"^{name}: "):
            make("webshop", folder, **{"split": "test", name: value})
    for split, tasks in (("eval", None), ("test", 8)):
        with pytest.raises(InputError, match=r"^tasks: expected at most the"):
            make("webshop", folder, split, tasks=tasks)
    env = make("webshop", folder, "test", tasks=2)
    assert len(env.tasks) == 2
    with pytest.raises(InputError, match="a running episode, got none"):
        env.step("click[x]")
    with pytest.raises(InputError, match="one of the 2 tasks"):
        env.reset(sad.envs.Task("synthetic-99", "fashion", ""))
    env.reset(env.tasks[0])
    with pytest.raises(InputError, match="action: expected text, got a int"):
        env.step(3)
