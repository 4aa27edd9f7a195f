"""Kinds of things and of receptacles: what can be done with them, what may be put where, and where things are found.

The kinds, their traits and what may be put where are those of ALFWorld's games.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TRAITS = {
    "cleanable": _words(
        "apple bowl butterknife cloth cup dishsponge egg fork kettle knife ladle lettuce mug pan "
        "plate pot potato soapbar spatula spoon tomato"
    ),
    "heatable": _words("apple bread cup egg mug plate potato tomato"),
    "coolable": _words("apple bowl bread cup egg lettuce mug pan plate pot potato tomato winebottle"),
    "sliceable": _words("apple bread egg lettuce potato tomato"),
    "hollow": _words("bowl box cup mug pan plate pot"),
    "toggleable": _words("desklamp floorlamp"),
}
FIXTURES = _words("desklamp floorlamp houseplant television")  # seen, never picked up

OPENABLE = _words("cabinet drawer fridge microwave safe")

HOLDS = {
    "armchair": _words("book box cellphone cloth creditcard keychain laptop newspaper pillow remotecontrol"),
    "bathtubbasin": _words("cloth dishsponge handtowel soapbar"),
    "bed": _words("baseballbat basketball book cellphone laptop pillow tennisracket"),
    "cabinet": _words(
        "book bowl box candle cd cloth cup dishsponge glassbottle handtowel kettle ladle mug "
        "newspaper pan peppershaker plate plunger pot saltshaker soapbar soapbottle spraybottle "
        "tissuebox toiletpaper vase wateringcan winebottle"
    ),
    "cart": _words("candle cloth dishsponge handtowel plunger soapbar soapbottle spraybottle tissuebox toiletpaper"),
    "coffeemachine": _words("mug"),
    "coffeetable": _words(
        "book bowl box candle cellphone creditcard keychain laptop newspaper pen pencil plate "
        "remotecontrol statue tissuebox vase watch wateringcan"
    ),
    "countertop": _words(
        "alarmclock apple book bowl bread butterknife candle cd cellphone cloth creditcard cup "
        "dishsponge egg fork glassbottle handtowel kettle keychain knife ladle laptop lettuce mug pan "
        "pen pencil peppershaker plate pot potato remotecontrol saltshaker soapbar soapbottle spatula "
        "spoon spraybottle statue tissuebox toiletpaper tomato vase winebottle"
    ),
    "desk": _words(
        "alarmclock basketball book bowl box cd cellphone cloth creditcard keychain laptop mug pen "
        "pencil remotecontrol statue tennisracket tissuebox vase watch wateringcan"
    ),
    "diningtable": _words(
        "alarmclock apple baseballbat book bowl box bread butterknife candle cd cellphone creditcard "
        "cup dishsponge egg fork glassbottle kettle keychain knife ladle laptop lettuce mug newspaper "
        "pan pen pencil peppershaker plate pot potato remotecontrol saltshaker soapbottle spatula "
        "spoon spraybottle statue tissuebox tomato vase watch wateringcan winebottle"
    ),
    "drawer": _words(
        "book butterknife candle cd cellphone cloth creditcard dishsponge fork handtowel keychain "
        "knife ladle newspaper pen pencil peppershaker remotecontrol saltshaker soapbar soapbottle "
        "spatula spoon spraybottle tissuebox toiletpaper watch wateringcan"
    ),
    "dresser": _words(
        "alarmclock basketball book bowl box candle cd cellphone cloth creditcard keychain laptop mug "
        "newspaper pen pencil remotecontrol spraybottle statue tennisracket tissuebox toiletpaper "
        "vase watch wateringcan"
    ),
    "fridge": _words("apple bowl bread cup egg glassbottle lettuce mug pan plate pot potato tomato winebottle"),
    "garbagecan": _words(
        "apple bread cd cloth dishsponge egg handtowel lettuce newspaper pen pencil potato soapbar "
        "soapbottle spraybottle tissuebox toiletpaper tomato winebottle"
    ),
    "handtowelholder": _words("handtowel"),
    "microwave": _words("apple bowl bread cup egg glassbottle mug plate potato tomato"),
    "ottoman": _words("book box cellphone creditcard keychain laptop newspaper pillow remotecontrol"),
    "safe": _words("cd cellphone creditcard keychain statue vase"),
    "shelf": _words(
        "alarmclock book bowl box candle cd cellphone cloth creditcard cup dishsponge glassbottle "
        "handtowel kettle keychain mug newspaper pen pencil peppershaker plate pot remotecontrol "
        "saltshaker soapbar soapbottle spraybottle statue tissuebox toiletpaper vase watch "
        "wateringcan winebottle"
    ),
    "sidetable": _words(
        "alarmclock apple baseballbat basketball book bowl box bread butterknife candle cd cellphone "
        "cloth creditcard cup dishsponge egg fork handtowel kettle keychain knife laptop lettuce mug "
        "newspaper pan pen pencil peppershaker plate pot potato remotecontrol saltshaker soapbar "
        "soapbottle spatula spoon spraybottle statue tennisracket tissuebox toiletpaper tomato vase "
        "watch wateringcan winebottle"
    ),
    "sinkbasin": _words(
        "apple bowl butterknife cloth cup dishsponge egg fork glassbottle handtowel kettle knife "
        "ladle lettuce mug pan plate pot potato soapbar spatula spoon tomato"
    ),
    "sofa": _words("book box cellphone creditcard keychain laptop newspaper pillow remotecontrol"),
    "stoveburner": _words("kettle pan pot"),
    "toaster": _words(""),
    "toilet": _words("candle cloth dishsponge handtowel soapbar soapbottle spraybottle tissuebox toiletpaper"),
    "toiletpaperhanger": _words("toiletpaper"),
    "towelholder": _words("towel"),
    "tvstand": _words("tissuebox"),
}

# where a kind of thing is usually found, the likeliest place first
_AT_HOME = {
    "apple egg potato tomato": "fridge diningtable countertop",
    "bread lettuce": "diningtable fridge countertop",
    "cup": "fridge diningtable countertop cabinet",
    "mug": "coffeemachine desk countertop cabinet",
    "bowl": "diningtable desk countertop cabinet",
    "plate": "diningtable countertop cabinet",
    "kettle pan pot": "stoveburner countertop cabinet",
    "butterknife fork knife ladle spatula spoon": "diningtable countertop drawer",
    "peppershaker saltshaker": "diningtable countertop cabinet drawer",
    "glassbottle winebottle": "diningtable fridge countertop cabinet",
    "dishsponge": "countertop sinkbasin cart drawer",
    "soapbar": "bathtubbasin toilet sinkbasin countertop",
    "soapbottle spraybottle": "toilet cart countertop cabinet",
    "candle": "toilet countertop coffeetable shelf cabinet",
    "tissuebox": "coffeetable toilet sidetable shelf countertop",
    "cloth": "bathtubbasin countertop drawer cabinet",
    "handtowel": "handtowelholder countertop",
    "towel": "towelholder",
    "toiletpaper": "toilet toiletpaperhanger countertop cabinet",
    "alarmclock": "desk dresser sidetable shelf",
    "baseballbat": "bed sidetable",
    "basketball tennisracket": "bed desk dresser",
    "book": "bed desk dresser coffeetable shelf",
    "laptop": "bed desk sofa coffeetable",
    "pillow": "bed sofa armchair",
    "cd pen pencil": "desk dresser sidetable shelf drawer",
    "cellphone": "desk bed dresser sidetable drawer",
    "creditcard keychain": "desk dresser coffeetable sidetable drawer",
    "watch": "coffeetable dresser sidetable drawer",
    "box newspaper": "coffeetable sofa sidetable armchair",
    "remotecontrol": "coffeetable sofa sidetable armchair drawer",
    "statue vase": "coffeetable dresser sidetable shelf",
    "wateringcan": "coffeetable shelf sidetable",
    "desklamp": "desk dresser sidetable shelf",
    "houseplant": "coffeetable desk sidetable",
    "television": "tvstand dresser",
    "plunger": "cart cabinet",
}
HOMES = {kind: tuple(places.split()) for kinds, places in _AT_HOME.items() for kind in kinds.split()}


def traits_of(kind: str) -> frozenset[str]:
    """What can be done with things of this kind."""
    traits = {trait for trait, kinds in TRAITS.items() if kind in kinds}
    return frozenset(traits if kind in FIXTURES else traits | {"pickupable"})
