"""Where objects are at the start of the ALFWorld games, counted over the 3,553 training games only.

The score of an object kind and a receptacle kind is `100 p / a`, rounded:

* `p` is the share of receptacles that contain at least one such object, among the receptacles of this kind in all rooms with
  at least one such object.
* `a` is the mean number of actions to see the contents of a receptacle of this kind: 2 if it must be opened first, else 1.

The table omits scores that round to 0, counts below 10, and floor lamps.
"""

from __future__ import annotations

OFTEN = 25  # score from which the expert says that an object is often there

_TABLE = """
alarmclock: diningtable 75 desk 56 countertop 52 dresser 46 sidetable 36 shelf 11
apple: diningtable 34 sidetable 31 garbagecan 23 fridge 21 countertop 20 sinkbasin 17 microwave 12
book: bed 59 coffeetable 50 desk 40 diningtable 33 countertop 33 sofa 24 dresser 23 armchair 13 sidetable 8 cabinet 2
    drawer 1 shelf 1
bowl: desk 78 coffeetable 43 diningtable 33 dresser 32 tvstand 29 fridge 17 countertop 16 shelf 9 sidetable 7 sinkbasin 6
    cabinet 3 microwave 3
box: diningtable 59 desk 56 coffeetable 31 sofa 25 dresser 10 tvstand 9 sidetable 6 shelf 5 armchair 3 cabinet 3
bread: diningtable 50 countertop 33 sidetable 9 fridge 9 garbagecan 1
butterknife: diningtable 51 countertop 39 sidetable 27 sinkbasin 10 drawer 1
candle: sidetable 63 countertop 46 toilet 45 coffeetable 39 cart 35 diningtable 30 dresser 27 shelf 23 cabinet 7 drawer 5
cd: diningtable 64 dresser 41 desk 40 sidetable 27 garbagecan 15 armchair 11 drawer 5 shelf 4 cabinet 4
cellphone: bed 41 desk 40 diningtable 40 coffeetable 36 dresser 35 countertop 27 sofa 25 sidetable 19 armchair 17 safe 12
    shelf 5 drawer 3
cloth: bathtubbasin 61 dresser 35 cart 33 countertop 27 shelf 15 cabinet 11 sinkbasin 9 toilet 6 drawer 6
creditcard: desk 39 dresser 36 diningtable 34 tvstand 32 sofa 31 countertop 28 coffeetable 27 sidetable 22 armchair 19
    ottoman 19 shelf 10 drawer 5
cup: diningtable 33 sidetable 28 sinkbasin 17 fridge 17 countertop 17 microwave 7 shelf 6 cabinet 2
desklamp: sidetable 42 desk 40 dresser 36 coffeetable 16 shelf 4
dishsponge: bathtubbasin 40 cart 30 diningtable 29 countertop 21 toilet 15 sinkbasin 15 sidetable 13 garbagecan 10 shelf
    10 drawer 4 cabinet 2
egg: diningtable 27 sidetable 27 garbagecan 23 sinkbasin 22 fridge 20 countertop 19 microwave 11
fork: diningtable 47 countertop 32 sidetable 25 sinkbasin 16 drawer 4
glassbottle: diningtable 37 countertop 18 sinkbasin 17 garbagecan 14 shelf 8 fridge 8 cabinet 2
handtowel: handtowelholder 79 countertop 5
kettle: diningtable 23 stoveburner 17 countertop 16 sinkbasin 3 cabinet 2
keychain: desk 40 dresser 36 coffeetable 31 diningtable 30 tvstand 29 sidetable 23 safe 21 ottoman 20 sofa 16 armchair 12
    shelf 8 drawer 4 cabinet 1
knife: diningtable 48 countertop 34 sidetable 14 sinkbasin 8 drawer 3
ladle: diningtable 51 countertop 30 sinkbasin 4 drawer 2 cabinet 2
laptop: bed 70 countertop 48 diningtable 40 desk 36 coffeetable 31 sofa 31 tvstand 17 dresser 17 armchair 5 sidetable 4
lettuce: diningtable 50 countertop 27 sidetable 24 fridge 17 sinkbasin 9 garbagecan 2
mug: desk 63 coffeemachine 39 dresser 37 diningtable 29 sidetable 26 countertop 25 fridge 13 sinkbasin 13 microwave 8
    shelf 7 cabinet 1
newspaper: diningtable 44 dresser 40 coffeetable 28 sofa 28 sidetable 14 armchair 12 tvstand 12 shelf 11
pan: countertop 25 stoveburner 22 diningtable 10 fridge 3
papertowelroll: diningtable 41 toilet 31 sidetable 23 countertop 22 garbagecan 15 shelf 11
pen: desk 58 diningtable 57 coffeetable 50 dresser 47 countertop 29 sidetable 28 tvstand 24 shelf 10 garbagecan 5 drawer
    4
pencil: diningtable 49 desk 49 coffeetable 42 dresser 37 sidetable 34 countertop 25 shelf 11 garbagecan 11 drawer 4
peppershaker: sidetable 36 diningtable 36 countertop 24 shelf 10 cabinet 3 drawer 3
pillow: bed 92 sofa 70 armchair 14
plate: diningtable 37 coffeetable 27 countertop 21 sidetable 9 fridge 7 shelf 6 sinkbasin 4 cabinet 3
pot: stoveburner 33 countertop 11 diningtable 10 fridge 4 shelf 1 sinkbasin 1
potato: diningtable 35 countertop 22 sidetable 21 fridge 21 sinkbasin 20 garbagecan 12 microwave 9
remotecontrol: countertop 52 desk 52 coffeetable 39 dresser 35 tvstand 34 diningtable 32 sofa 26 ottoman 19 sidetable 16
    armchair 11 shelf 3 drawer 2
saltshaker: diningtable 38 sidetable 36 countertop 24 shelf 9 cabinet 2 drawer 2
soapbar: sidetable 47 countertop 34 bathtubbasin 32 cart 28 toilet 28 sinkbasin 19 shelf 15 garbagecan 13 cabinet 7
    drawer 4
soapbottle: diningtable 44 dresser 42 toilet 38 countertop 27 sidetable 25 cart 24 garbagecan 18 shelf 15 cabinet 3
spatula: diningtable 48 countertop 32 sinkbasin 16 sidetable 10 drawer 4
spoon: diningtable 44 sidetable 30 countertop 28 sinkbasin 20 drawer 5
spraybottle: sidetable 62 cart 54 toilet 43 countertop 40 dresser 34 diningtable 33 shelf 21 garbagecan 20 cabinet 4
statue: coffeetable 45 desk 44 diningtable 44 dresser 37 tvstand 37 countertop 28 sidetable 23 shelf 19
teddybear: bed 78
tissuebox: coffeetable 57 desk 54 countertop 54 diningtable 39 cart 37 tvstand 29 shelf 22 sidetable 21 dresser 17
    cabinet 6 drawer 3
toiletpaper: toilet 42 sidetable 38 countertop 37 dresser 36 cart 34 toiletpaperhanger 23 shelf 19 garbagecan 18 cabinet
    6 drawer 4
tomato: diningtable 41 sidetable 26 fridge 26 countertop 23 garbagecan 18 sinkbasin 12
towel: towelholder 87 countertop 3
vase: dresser 62 coffeetable 45 desk 40 diningtable 38 tvstand 31 countertop 27 sidetable 25 shelf 22 cabinet 3
watch: tvstand 45 desk 44 diningtable 42 dresser 39 coffeetable 37 sidetable 22 shelf 5 drawer 5
wateringcan: coffeetable 55 shelf 21
winebottle: diningtable 48 countertop 32 garbagecan 16 shelf 6 cabinet 2 fridge 1
"""


def _parse(text: str) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for line in text.replace("\n    ", " ").strip().splitlines():
        kind, _, rest = line.partition(": ")
        words = rest.split()
        table[kind] = dict(zip(words[::2], map(int, words[1::2])))
    return table


OBJECT_LOCATIONS = _parse(_TABLE)  # object kind -> receptacle kind -> score, the highest first
