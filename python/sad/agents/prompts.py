"""Prompts before the first observation, for models that were not trained on transcripts of the environment."""

from __future__ import annotations

from pathlib import Path

from sad.errors import InputError

# The examples of the paper's appendix E.1, verbatim, one line per span. The environments do not know their commands.
# The `env` prompts below have the same form and list the commands of the environment.
_PAPER_HOUSEHOLD = """\
You are an intelligent agent operating in a simulated household environment.
Goal: Put the soap on the sink.
Reasoning: First, I should find where the soap is located.
Action: navigate to the bathroom.
Reasoning: Now I need to look for the soap in the bathroom.
Action: pick up the soap.
Reasoning: I should move to the sink area.
Action: move to sink.
Reasoning: Finally, I should place the soap on the sink.
Action: place soap on sink.
"""
_PAPER_SHOP = """\
You are a shopping assistant on an online store.
User goal: Find a waterproof digital camera under $100.
Reasoning: First, I should search for waterproof cameras.
Action: [Search] "waterproof camera".
Reasoning: I need to filter for products under $100.
Action: [Click] "Price: Low to High" filter.
Reasoning: This camera is waterproof and under budget.
Action: [Buy] selected camera.
"""
_PAPER_QUESTIONS = """\
Q: Where was the author of The Origin of Species born?
Let us think step by step.
Reasoning: Charles Darwin wrote The Origin of Species.
Reasoning: Charles Darwin was born in Shrewsbury.
Action: Shrewsbury
"""

_HOUSEHOLD = """\
You act in a simulated household. In each turn write one line that begins with "Reasoning:" and one that begins with
"Action:", and stop; then you are told what happens.
An action is one of: go to PLACE, open PLACE, close PLACE, take THING from PLACE, put THING in/on PLACE,
clean THING with PLACE, heat THING with PLACE, cool THING with PLACE, use THING, examine PLACE, look, inventory.
Places and things are named with their numbers, as in the observations. An example:

You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a countertop 1, and a sinkbasin 1.
Your task is to: put some soapbar in cabinet.
Reasoning: I need a soapbar. A usual place is the sinkbasin, so I look there first.
Action: go to sinkbasin 1
In the sinkbasin 1, you see a soapbar 1.
Reasoning: I see soapbar 1 in sinkbasin 1. I take it.
Action: take soapbar 1 from sinkbasin 1
You pick up the soapbar 1 from the sinkbasin 1.
Reasoning: I hold soapbar 1. It must be in a cabinet, so I go to cabinet 1.
Action: go to cabinet 1
The cabinet 1 is closed.
Reasoning: It is closed. I open it to put soapbar 1 in.
Action: open cabinet 1
The cabinet 1 is open. In it, you see nothing.
Reasoning: I am at the open cabinet 1 with soapbar 1. I put it there.
Action: put soapbar 1 in/on cabinet 1

Now your turn.
"""
_SHOP = """\
You buy what a user asks for in an online shop. In each turn write one line that begins with "Reasoning:" and one that
begins with "Action:", and stop; then you see the page you get.
An action is search[WORDS] where the page has a search field, or click[NAME] with the name of a button, a product or an
option of the page. Choose the options that are asked for before you click[Buy Now], which ends the shopping. An example:

Instruction: i am looking for a waterproof phone case in black, and price lower than 20.00 dollars
Reasoning: I search for what is asked.
Action: search[waterproof phone case black]
(a page with the products B000000001 and B000000002)
Reasoning: B000000001 is waterproof and costs $15.99, which is below $20. I open it.
Action: click[B000000001]
(the product's page, with the options black and blue)
Reasoning: It comes in black, as asked. I choose that.
Action: click[black]
(the same page)
Reasoning: Everything fits, so I buy it.
Action: click[Buy Now]

Now your turn.
"""
_QUESTIONS = """\
You answer a question with the help of an encyclopedia. In each turn write one line that begins with "Reasoning:" and one
that begins with "Action:", and stop; then you are told what was found.
An action is Search[TITLE], which shows the beginning of that page or similar titles, Lookup[WORDS], which shows the next
sentence with these words on that page, or Finish[ANSWER], which ends the search. Answer with a name, a date, a number, yes
or no, and nothing else. An example:

Question: Where was the author of The Origin of Species born?
Reasoning: I need the author of The Origin of Species, then the place of birth.
Action: Search[The Origin of Species]
On the Origin of Species is a work of scientific literature by Charles Darwin.
Reasoning: The author is Charles Darwin. I look for where he was born.
Action: Search[Charles Darwin]
Charles Robert Darwin was an English naturalist. He was born in Shrewsbury.
Reasoning: He was born in Shrewsbury.
Action: Finish[Shrewsbury]

Now your turn.
"""

PROMPTS = {
    "household": {"paper": _PAPER_HOUSEHOLD, "env": _HOUSEHOLD},
    "alfworld": {"paper": _PAPER_HOUSEHOLD, "env": _HOUSEHOLD},
    "webshop": {"paper": _PAPER_SHOP, "env": _SHOP},
    "hotpotqa": {"paper": _PAPER_QUESTIONS, "env": _QUESTIONS},
}


def prompt_text(name: str, env_name: str) -> str:
    """Returns the text of a prompt.

    Args:
        name: `"paper"`: the example of the paper's appendix E.1. `"env"`: an example of the same form with the commands of
            the environment. `"none"`: no prompt, for models trained on transcripts of the environment. Any other value
            is the path of a text file.
        env_name: Name of the environment. `paper` and `env` exist for the environments in `PROMPTS`.

    Raises:
        InputError: There is no such prompt or file.
    """
    if name == "none":
        return ""
    if name in ("paper", "env"):
        if env_name not in PROMPTS:
            known = ", ".join(PROMPTS)
            remedy = "Write a prompt file, or use 'none'."
            raise InputError("prompt", f"a text file or 'none' (only {known} have prompts)", repr(name), remedy)
        return PROMPTS[env_name][name]
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        expected = "'paper', 'env', 'none' or a text file"
        raise InputError("prompt", expected, f"{name!r} ({error})", "Use one of these.") from None
