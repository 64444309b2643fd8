"""Units of measure: which convert into each other, and by what factor."""

_PREFIXES = {
    "": 1.0,
    "n": 1e-9,
    "µ": 1e-6,
    "u": 1e-6,
    "m": 1e-3,
    "k": 1e3,
    "K": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
}
_PREFIX_NAMES = {
    "": "",
    "nano": "n",
    "micro": "µ",
    "milli": "m",
    "kilo": "k",
    "mega": "M",
    "giga": "G",
    "tera": "T",
}
_NAMES = {
    "second": "s", "sec": "s", "metre": "m", "meter": "m", "gram": "g", "bit": "bit", "byte": "B",
    "hertz": "Hz", "joule": "J", "watt": "W", "volt": "V", "ampere": "A", "amp": "A", "newton": "N",
    "pascal": "Pa", "ohm": "Ω", "mole": "mol", "litre": "l", "liter": "l",
}  # fmt: skip
#: Chinese names, which take the prefixes below
_CHINESE_NAMES = {
    "牛": "N", "牛顿": "N", "焦": "J", "焦耳": "J", "瓦": "W", "瓦特": "W", "伏": "V", "伏特": "V",
    "安": "A", "安培": "A", "帕": "Pa", "帕斯卡": "Pa", "欧": "Ω", "欧姆": "Ω", "赫": "Hz", "赫兹": "Hz",
    "升": "l", "摩尔": "mol",
}  # fmt: skip
_CHINESE_PREFIXES = {"": 1.0, "毫": 1e-3, "微": 1e-6, "千": 1e3, "兆": 1e6}
_SYMBOLS = ("s", "m", "g", "bit", "B", "Hz", "J", "W", "V", "A", "N", "Pa", "Ω", "mol", "l", "bit/s", "B/s")

#: symbol or name → (dimension, factor to the dimension's base)
_UNITS: dict[str, tuple[str, float]] = {
    **{prefix + symbol: (symbol, factor) for symbol in _SYMBOLS for prefix, factor in _PREFIXES.items()},
    **{
        prefix + name + plural: (symbol, _PREFIXES[_PREFIX_NAMES[prefix]])
        for name, symbol in _NAMES.items()
        for prefix in _PREFIX_NAMES
        for plural in ("", "s")
    },
    **{
        prefix + name: (symbol, factor)
        for name, symbol in _CHINESE_NAMES.items()
        for prefix, factor in _CHINESE_PREFIXES.items()
    },
    "%": ("%", 1.0), "percent": ("%", 1.0),
    "cm": ("m", 1e-2), "min": ("s", 60.0), "minute": ("s", 60.0), "minutes": ("s", 60.0),
    "h": ("s", 3600.0), "hour": ("s", 3600.0), "hours": ("s", 3600.0),
    "day": ("s", 86400.0), "days": ("s", 86400.0),
    "bits": ("bit", 1.0), "bps": ("bit/s", 1.0), "kbps": ("bit/s", 1e3), "Mbps": ("bit/s", 1e6),
    "Gbps": ("bit/s", 1e9),
    "°C": ("°C", 1.0), "°F": ("°F", 1.0), "°": ("°", 1.0), "€": ("€", 1.0), "$": ("$", 1.0),
    "秒": ("s", 1.0), "毫秒": ("s", 1e-3), "微秒": ("s", 1e-6), "分钟": ("s", 60.0), "小时": ("s", 3600.0),
    "米": ("m", 1.0), "厘米": ("m", 1e-2), "毫米": ("m", 1e-3), "千米": ("m", 1e3), "公里": ("m", 1e3),
    "克": ("g", 1.0), "千克": ("g", 1e3), "公斤": ("g", 1e3), "吨": ("g", 1e6),
    "比特": ("bit", 1.0), "字节": ("B", 1.0),
}  # fmt: skip


def is_unit(text: str) -> bool:
    """Whether the text is a unit that we know, case included where case tells (mW, MW)."""
    return _find(text) is not None


def factor_between(origin: str, target: str) -> float | None:
    """What a value in `origin` is multiplied by to be one in `target`; `None` if it cannot be."""
    if origin == target:
        return 1.0
    known, wanted = _find(origin), _find(target)
    if known is None or wanted is None or known[0] != wanted[0]:
        return None
    return known[1] / wanted[1]


def _find(text: str) -> tuple[str, float] | None:
    # names are written in any case, symbols are not
    return _UNITS.get(text) or (_UNITS.get(text.lower()) if len(text) > 3 else None)
