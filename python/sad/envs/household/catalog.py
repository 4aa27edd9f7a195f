"""Tables of the household: object kinds and their traits, receptacle kinds and their contents, and rooms.

The kinds, `TRAITS` and `CAN_CONTAIN` are those of the ALFWorld games.
"""

from __future__ import annotations

from typing import NamedTuple


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
FIXTURES = _words("desklamp floorlamp houseplant television")  # visible, but not pickupable

OPENABLE = _words("cabinet drawer fridge microwave safe")

# Receptacle kind -> object kinds that can be put there.
CAN_CONTAIN = {
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

# Object kinds -> receptacle kinds where they are usually found, the likeliest first.
_USUAL_PLACES = {
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
USUAL_PLACES = {kind: tuple(places.split()) for kinds, places in _USUAL_PLACES.items() for kind in kinds.split()}


def traits_of(kind: str) -> frozenset[str]:
    """Returns the traits of an object kind."""
    traits = {trait for trait, kinds in TRAITS.items() if kind in kinds}
    return frozenset(traits if kind in FIXTURES else traits | {"pickupable"})


class Room(NamedTuple):
    """The receptacles and objects of a kind of room, in its full and small size.

    Attributes:
        receptacles: Receptacle kind -> (minimum, maximum) number of receptacles in a full room.
        objects: Object kinds of a full room.
        small_receptacles: Receptacle kinds of a small room.
        small_objects: Object kinds of a small room.
    """

    receptacles: dict[str, tuple[int, int]]
    objects: tuple[str, ...]
    small_receptacles: tuple[str, ...]
    small_objects: tuple[str, ...]


ROOMS = {
    "kitchen": Room(
        receptacles={
            "cabinet": (4, 9),
            "coffeemachine": (1, 1),
            "countertop": (1, 3),
            "diningtable": (0, 1),
            "drawer": (2, 6),
            "fridge": (1, 1),
            "garbagecan": (1, 1),
            "microwave": (1, 1),
            "shelf": (0, 3),
            "sidetable": (0, 1),
            "sinkbasin": (1, 1),
            "stoveburner": (4, 4),
            "toaster": (1, 1),
        },
        objects=tuple(
            "apple bowl bread butterknife cup dishsponge egg fork glassbottle kettle knife ladle lettuce mug pan "
            "peppershaker plate pot potato saltshaker soapbottle spatula spoon tomato vase winebottle".split()
        ),
        small_receptacles=("cabinet", "countertop", "diningtable", "fridge", "garbagecan", "microwave", "sinkbasin"),
        small_objects=("apple", "cup", "egg", "lettuce", "mug", "plate", "potato", "tomato"),
    ),
    "bathroom": Room(
        receptacles={
            "bathtubbasin": (0, 1),
            "cabinet": (2, 5),
            "cart": (0, 1),
            "countertop": (1, 2),
            "drawer": (0, 4),
            "garbagecan": (1, 1),
            "handtowelholder": (1, 2),
            "shelf": (0, 2),
            "sinkbasin": (1, 2),
            "toilet": (1, 1),
            "toiletpaperhanger": (1, 1),
            "towelholder": (1, 2),
        },
        objects=tuple(
            "candle cloth dishsponge handtowel plunger soapbar soapbottle spraybottle tissuebox toiletpaper towel".split()
        ),
        small_receptacles=("cabinet", "countertop", "garbagecan", "sinkbasin", "toilet"),
        small_objects=("candle", "cloth", "soapbar", "soapbottle", "spraybottle"),
    ),
    "bedroom": Room(
        receptacles={
            "armchair": (0, 1),
            "bed": (1, 2),
            "desk": (1, 2),
            "drawer": (3, 8),
            "dresser": (0, 1),
            "garbagecan": (1, 1),
            "safe": (0, 1),
            "shelf": (0, 5),
            "sidetable": (1, 2),
        },
        objects=tuple(
            "alarmclock baseballbat basketball book bowl cd cellphone creditcard desklamp houseplant keychain laptop "
            "mug pen pencil pillow statue tennisracket vase watch".split()
        ),
        small_receptacles=("bed", "desk", "drawer", "dresser", "shelf", "sidetable"),
        small_objects=("alarmclock", "book", "cd", "desklamp", "laptop", "pen", "pillow"),
    ),
    "living room": Room(
        receptacles={
            "armchair": (1, 2),
            "coffeetable": (1, 2),
            "diningtable": (0, 1),
            "drawer": (0, 4),
            "dresser": (0, 1),
            "garbagecan": (1, 1),
            "ottoman": (0, 1),
            "shelf": (0, 3),
            "sidetable": (1, 2),
            "sofa": (1, 2),
            "tvstand": (0, 1),
        },
        objects=tuple(
            "book box cellphone creditcard houseplant keychain laptop newspaper pillow remotecontrol statue "
            "television tissuebox vase watch wateringcan".split()
        ),
        small_receptacles=("armchair", "coffeetable", "drawer", "sidetable", "sofa"),
        small_objects=("box", "keychain", "newspaper", "remotecontrol", "watch"),
    ),
}
