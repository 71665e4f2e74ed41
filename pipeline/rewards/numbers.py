r"""The one number that an answer states: whatever stands around it is read, harmless, or makes it no number.

Symbols are known or refused: signs, brackets, currencies, LaTeX for layout and fractions, powers of ten, units. Words
are prose unless they are known to change a number, as ``million`` (which is read), ``half`` and ``at least`` (which are
not).
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, localcontext

MAX_NUMBER = 400
"""Characters that are looked at; a longer answer holds no single sensible number."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,6}(?!\d))?"
FRACTION = re.compile(rf"(?P<top>{DECIMAL})(?:\s*/\s*(?P<bottom>{DECIMAL}))?")
THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
POWER_OF_TEN = re.compile(
    r"(?<=[\d.])\s*(?:\\times|\\cdot|[*x×·⋅])\s*10\s*(?:\^|\*\*)\s*"  # noqa: RUF001
    r"(?:\{\s*([-+]?\d{1,6})\s*\}|([-+]?\d{1,6}))"
)
"""The scientific notation of people."""

DASHES = str.maketrans("‐‑‒–—―−﹘﹣－＋⁄∕\xa0％", "----------+// %")  # noqa: RUF001
SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁹⁺⁻]+")
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8"}

LATEX = (
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|boxed|fbox)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r" (\1/\2) "),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r" (\1/\2) "),
    (re.compile(r"\(\s*(\d+(?:\.\d*)?)\s*/\s*(\d+(?:\.\d*)?)\s*\)"), r"\1/\2"),
    (re.compile(r"(?<=\d)(?:\\[,;!: ]|\{,\}|[\u2009\u202f])(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\[,;: ]|\\q?quad\b|~"), " "),
    (re.compile(r"\\(?:left|right|big|Big|displaystyle)(?![A-Za-z])|\\[()\[\]]"), " "),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"\\approx(?![A-Za-z])"), "≈"),
    (re.compile(r"\\([%$€£&])"), r"\1"),
)
"""LaTeX that says how something looks, and fractions."""
MARKDOWN = re.compile(r"(\*{1,3}|_{1,3}|`{1,3}|\$\$?)(?=\S)([^*_`$]+?)(?<=\S)\1")

CURRENCY = "$€£¥₹₽₩"
SCALES = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3, "K": 3, "M": 6, "B": 9,
    "mn": 6, "bn": 9, "tn": 12, "mio": 6,
}  # fmt: skip
SCALE = re.compile(r"(?:\s*-?\s*(hundred|thousand|million|billion|trillion)s?|\s*(mn|bn|tn|mio)|([kKMB]))(?![^\W_])")
SHORT = _words("m g s h l L W V J A C F")
"""Single letters that are units behind a number, and usually no variables."""
UNITS = _words("""
    mm cm dm km in ft yd mi mg kg lb lbs oz ml mL cl dl ms ns sec min hr hrs am pm kW kWh MW Hz kHz MHz GHz kB MB GB TB
    kJ kcal cal mol Pa kPa bar atm rad deg mph kph USD EUR GBP CNY RMB INR JPY usd eur px pt pts pcs
""")
"""Units that may stand right behind a number. Longer words are units too where they stand apart."""
TWO_LETTERS = UNITS | _words("am an as at be by do go he if in is it me my of oh ok on so to up us we")
SQUARED = re.compile(
    r"(?<![^\W\d_])(mm|cm|dm|km|m|in|ft|yd|mi|units?|s|inch(?:es)?|feet|met(?:er|re)s?)\s*\^\s*\{?\s*-?[123]\s*\}?"
)
"""Units of area, volume and acceleration."""

QUANTITIES = _words("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds thousand thousands million
    millions billion billions trillion trillions dozen dozens score gross half halves third thirds quarter quarters
    fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths hundredth
    hundredths thousandth thousandths millionth millionths double twice thrice triple quadruple lakh crore milliard
    milliards milliarde milliarden millionen millones mille mil tausend mila hundert cien ciento
""")
OPERATIONS = _words("""
    plus minus negative positive times divided multiplied squared cubed square cube cubic root power factorial log ln lg
    exp sqrt cbrt sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh abs floor ceil mod modulo gcd lcm max min
    sum product inverse reciprocal infinity inf pi tau phi theta alpha beta lambda mu sigma omega absolute conjugate
    complement base binary hex octal
""")
COMPARISONS = _words("""
    than less fewer least most under over above below beyond exceeds exceeding not no never nor neither without except
    unless cannot cant dont doesnt didnt isnt wasnt wont or either versus vs between within up until greater lower
    higher smaller wrong incorrect false unlikely almost nearly
""")
CHANGING = QUANTITIES | OPERATIONS | COMPARISONS
"""Words that may change what number is meant."""
CHANGING_BEHIND = CHANGING - _words("""
    times less fewer square cubic over up sec min max sum product base score power root within lower higher
""")
"""Behind the number some of them are units or prose: 5 times, 5 square metres, 5 points less."""
SCRIPTS = re.compile("[十百千万萬亿億兆半负負零一二三四五六七八九两兩約]")
"""Characters of Chinese and Japanese that are numbers or change one."""
STEMS = ("тысяч", "миллион", "миллиард", "полтор", "минус", "половин")

NAMED = re.compile(r"(?:^|(?<=[\s(,:]))[^\W\d_](?:_[A-Za-z])?\s*(?:=|≈|:|is|equals)\s*$")
"""The variable that the number is the value of, right before it."""
NONE: frozenset[str] = frozenset()
SIGN = re.compile(
    rf"(?:(?:^|(?<=[\s=≈(|\[{{:,{CURRENCY}]))([-+])|(?<![^\W_])(minus|negative|positive|plus))(\s*)$", re.IGNORECASE
)
OPENING, CLOSING = "([{|", ")]}|"
LETTER = re.compile("[A-Za-z\u0370-\u03ff]")
"""A letter of formulas: before a number it is part of a name, and alone it is a variable."""
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # noqa: RUF001
PROSE = re.compile(r"[\s.,:;!?'\"’“”()&…]|(?<=[^\W\d_])[-/](?=[^\W\d_])")  # noqa: RUF001


def read_number(text: str) -> Decimal | None:
    r"""The only number in a text; None where there is none, several, or something that changes it and is not read.

    >>> read_number("$1,234.50 a month"), read_number("3/4"), read_number("-(5)"), read_number("minus 5 million")
    (Decimal('1234.50'), Decimal('0.75'), Decimal('-5'), Decimal('-5E+6'))
    >>> read_number("3 or 4"), read_number(r"\sqrt{5}"), read_number("x > 5"), read_number("2x")
    (None, None, None, None)
    """
    if len(text) > MAX_NUMBER:
        return None
    text = _plain(text)
    found = FRACTION.search(text)
    if found is None:
        return None
    before, behind = text[: found.start()], SQUARED.sub(r"\1", text[found.end() :])
    if any(map(str.isdigit, before + behind)) or LETTER.search(before[-1:]):
        return None
    with localcontext(Context(prec=60, traps=[])):
        number = Decimal(found["top"]) / Decimal(found["bottom"] or 1)
        read = _scaled(number, behind)
        read = read and _surrounded(read[0], before, read[1])
        return read if read is not None and read.is_finite() else None


def _plain(text: str) -> str:
    """The text with one notation for each sign, fraction and power, and without what only says how it looks."""
    text = SUPERSCRIPTS.sub(lambda found: "^" + found[0].translate(RAISED), text.translate(DASHES))
    for sign, fraction in VULGAR.items():
        text = text.replace(sign, f" {fraction}")
    text = POWER_OF_TEN.sub(lambda found: f"e{found[1] or found[2]}", THOUSANDS.sub(_without_commas, text))
    if "\\" in text or "~" in text or "{" in text:
        for _ in range(3):  # \boxed{\text{5}}
            for pattern, plain in LATEX:
                text = pattern.sub(plain, text)
        text = THOUSANDS.sub(_without_commas, text)
    for _ in range(2):
        text = MARKDOWN.sub(r"\2", text)
    return text.strip().strip('*_`"“”').strip()


def _without_commas(found: re.Match[str]) -> str:
    return found[0].replace(",", "")


def _scaled(number: Decimal, behind: str) -> tuple[Decimal, str] | None:
    """The number with the scale right behind it, and the rest; None where what touches the number is no unit."""
    scale = SCALE.match(behind)
    if scale:
        number, behind = number.scaleb(SCALES[scale[1] or scale[2] or scale[3]]), behind[scale.end() :]
    touching = WORD.match(behind)
    if touching and touching[0].isascii():
        if touching[0] not in UNITS:
            return None
        behind = behind[touching.end() :]
    # 5!, 5', 5.., 5(3), 5-x, 5/x
    if re.match(r"[!'’(\[{\\]|\.\.|…|[-/](?:[^\W_](?![^\W_])|\W|$)", behind):  # noqa: RUF001
        return None
    return number, re.sub(r"^[-/](?=[^\W\d_])", " ", behind)


def _surrounded(number: Decimal, before: str, behind: str) -> Decimal | None:
    """The number with the signs and brackets around it; None where anything else may change it."""
    signed = False
    while True:
        behind = re.sub(rf"^\s*(?:[%°]|[{re.escape(CURRENCY)}])", "", behind, count=1)
        stripped = before.rstrip()
        if stripped and stripped[-1] in CURRENCY:
            before = stripped[:-1]
            continue
        bracket = OPENING.find(stripped[-1]) if stripped else -1
        if bracket >= 0 and behind.lstrip()[:1] == CLOSING[bracket]:
            if stripped[-2:-1].isalnum():
                return None  # f(5)
            before, behind = stripped[:-1], behind.lstrip()[1:]
            number, signed = abs(number) if stripped[-1] == "|" else number, False
            continue
        sign = SIGN.search(before)
        if sign is None:
            break
        alone = not before[: sign.start()].strip() or before[: sign.start()].rstrip()[-1] in "=≈(|[{" + CURRENCY
        if signed or (sign[1] and sign[3] and not alone):
            return None  # --5, or a dash of punctuation: the total - 5
        number = -number if sign[1] == "-" or (sign[2] or "").lower() in ("minus", "negative") else number
        signed, before = True, before[: sign.start()]
    before = NAMED.sub("", before)
    harmless = _is_harmless(re.sub(r"[=≈]\s*$", "", before), CHANGING, NONE)
    return number if harmless and _is_harmless(behind, CHANGING_BEHIND, SHORT) else None


def _is_harmless(text: str, changing: frozenset[str], short: frozenset[str]) -> bool:
    """Whether a part of the text is prose or units, and cannot change the number; ``short``: letters that are units."""
    for word in WORD.findall(text):
        plain = re.sub("['’]", "", word.lower())  # noqa: RUF001
        if plain in changing or (plain != word.lower() and plain.endswith("nt")):
            return False
        if plain.startswith(STEMS) or SCRIPTS.search(word):
            return False
        variable = (
            (len(word) == 1 and LETTER.match(word) and word not in {"a", "A", "I"} | short)
            or (len(word) == 2 and word.isascii() and word not in TWO_LETTERS and plain not in TWO_LETTERS)
            or (len(word) == 3 and set(word) <= set("abcxyz"))
        )
        if variable:
            return False
    return not PROSE.sub("", WORD.sub("", PROSE.sub(" ", text)))
