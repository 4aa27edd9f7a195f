"""Words that the judge looks for: the nouns of a title and the colour in an option."""

from __future__ import annotations

import re

_WORD = re.compile(r"[\w.]*[^\W\d_][\w.]*")  # with a letter in it; `0.5oz` is one word
_POSSESSIVE = re.compile(r"['’]s\b")
# Closed classes of English: in the title of a product nearly all other words are names and nouns.
_NO_NOUNS = frozenset(
    """
    a an the this that these those each both all any some every no none other such
    i me my we us our you your he him his she her it its they them their who whom whose which what
    and or but nor yet so if because while although though whether than then as
    of in on at by for from to into onto with without within about above across after against along among around before
    behind below beneath beside between beyond down up over under inside near off out outside per since through till toward
    until upon via like during except
    is are was were be been being am do does did has have had can could will would shall should may might must
    not very too more most only also just here there even again never when where how why
    one two three four five six seven eight nine ten x
    """.split()
)
# The colours that the original tells apart, in the order in which it looks for them: the first one found in an option
# stands for it.
COLORS = tuple(
    """
    alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo caramel
    champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream crystal dark denim
    eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather indigo ivory ivy khaki
    lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha multicolor mushroom mustard
    natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal rust sand sapphire seashell silver
    skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise violet walnut wheat white wine yellow
    """.split()
)


def title_nouns(title: str) -> tuple[str, ...]:
    """The nouns and names of a title, in lower case: all words that are not of a closed class.

    The original asks spaCy's tagger, which calls 89 of 100 words of a title a noun or a name.
    """
    words = (word.strip("._") for word in _WORD.findall(_POSSESSIVE.sub(" ", title.lower())))
    return tuple(word for word in words if word not in _NO_NOUNS)


def color_of(option: str) -> str:
    """The first colour whose name is somewhere in an option, or else the option itself."""
    return next((color for color in COLORS if color in option), option)
