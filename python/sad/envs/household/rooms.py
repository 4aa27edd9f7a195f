"""The furniture of four kinds of room, and what lies about in them."""

from __future__ import annotations

from typing import NamedTuple


class Room(NamedTuple):
    """The furniture of a kind of room, and what lies about in it.

    Attributes:
        furniture: Receptacle kind to how many there are (at least, at most), in a full-sized room.
        things: The kinds of things found here.
        corner: Receptacle kinds of the small room.
        few: Kinds of things in the small room.
    """

    furniture: dict[str, tuple[int, int]]
    things: tuple[str, ...]
    corner: tuple[str, ...]
    few: tuple[str, ...]


ROOMS = {
    "kitchen": Room(
        furniture={
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
        things=tuple(
            "apple bowl bread butterknife cup dishsponge egg fork glassbottle kettle knife ladle lettuce mug pan "
            "peppershaker plate pot potato saltshaker soapbottle spatula spoon tomato vase winebottle".split()
        ),
        corner=("cabinet", "countertop", "diningtable", "fridge", "garbagecan", "microwave", "sinkbasin"),
        few=("apple", "cup", "egg", "lettuce", "mug", "plate", "potato", "tomato"),
    ),
    "bathroom": Room(
        furniture={
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
        things=tuple(
            "candle cloth dishsponge handtowel plunger soapbar soapbottle spraybottle tissuebox toiletpaper towel".split()
        ),
        corner=("cabinet", "countertop", "garbagecan", "sinkbasin", "toilet"),
        few=("candle", "cloth", "soapbar", "soapbottle", "spraybottle"),
    ),
    "bedroom": Room(
        furniture={
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
        things=tuple(
            "alarmclock baseballbat basketball book bowl cd cellphone creditcard desklamp houseplant keychain laptop "
            "mug pen pencil pillow statue tennisracket vase watch".split()
        ),
        corner=("bed", "desk", "drawer", "dresser", "shelf", "sidetable"),
        few=("alarmclock", "book", "cd", "desklamp", "laptop", "pen", "pillow"),
    ),
    "living room": Room(
        furniture={
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
        things=tuple(
            "book box cellphone creditcard houseplant keychain laptop newspaper pillow remotecontrol statue "
            "television tissuebox vase watch wateringcan".split()
        ),
        corner=("armchair", "coffeetable", "drawer", "sidetable", "sofa"),
        few=("box", "keychain", "newspaper", "remotecontrol", "watch"),
    ),
}
