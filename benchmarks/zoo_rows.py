"""Rows that fit the inputs of the zoo's nets: of each input, in the inputs' order."""

import numpy as np

Rows = tuple[np.ndarray, ...]
Random = np.random.Generator

MASKED = -4_200_000.0  # What mhcnuggets pads its peptides with.


def patches(random: Random, rows: int, *, size: int, channels: int = 3, low: float = -1.0, high: float = 1.0) -> Rows:
    """Cuts squares out of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    result = np.empty((rows, size, size, 3), np.float32)
    for row in range(rows):
        photograph = photographs[row % len(photographs)]
        scale = int(random.integers(1, min(photograph.shape[:2]) // size + 1))
        top, left = (int(random.integers(0, extent - size * scale + 1)) for extent in photograph.shape[:2])
        cut = photograph[top : top + size * scale, left : left + size * scale]
        result[row] = cut.reshape(size, scale, size, scale, 3).mean((1, 3))
    gray = result if channels == 3 else result.mean(-1, keepdims=True)
    return ((gray / 255 * (high - low) + low).astype(np.float32),)


def normal(random: Random, rows: int, *, shape: tuple[int, ...]) -> Rows:
    """Draws from the standard normal distribution."""
    return (random.normal(size=(rows, *shape)).astype(np.float32),)


def one_hot(random: Random, rows: int, *, length: int) -> Rows:
    """Draws DNA."""
    return (np.eye(4, dtype=np.float32)[random.integers(0, 4, (rows, length))],)


def peptides(random: Random, rows: int) -> Rows:
    """Draws peptides of 8 to 11 amino acids, padded to 15."""
    values = np.eye(21, dtype=np.float32)[random.integers(0, 20, (rows, 15))]
    for row, length in enumerate(random.integers(8, 12, rows)):
        values[row, length:] = MASKED
    return (values,)


def tokens(random: Random, rows: int, *, length: int, tokens: int, dtype: str = "float32") -> Rows:
    """Draws ids of tokens."""
    return (random.integers(0, tokens, (rows, length)).astype(dtype),)


def thai(random: Random, rows: int) -> Rows:
    """Draws ids of characters and of their kinds."""
    ids = random.integers(0, 178, (rows, 21)), random.integers(0, 12, (rows, 21))
    return tuple(values.astype(np.float32) for values in ids)


def notes(random: Random, rows: int) -> Rows:
    """Draws two seconds of chords at 22,050 Hz."""
    seconds = np.arange(43_844) / 22_050
    pitches = 440 * 2 ** (random.integers(-24, 24, (rows, 3, 1)) / 12)
    sound = np.sin(2 * np.pi * pitches * seconds).mean(1) * np.exp(-seconds)
    return ((0.5 * sound + 0.01 * random.normal(size=sound.shape))[..., None].astype(np.float32),)


def light_curves(random: Random, rows: int) -> Rows:
    """Draws the flux of transients in two bands over 50 days; days without an observation are zero, and masked."""
    days = np.linspace(-1, 1, 50)
    peaks = np.exp(-((days - random.uniform(-0.5, 0.5, (rows, 1))) ** 2) / random.uniform(0.05, 0.3, (rows, 1)))
    flux = np.stack([peaks, peaks * random.uniform(0.5, 1.5, (rows, 1))], -1)
    flux[:, :5] = 0
    return (flux.astype(np.float32),)


def cepstra(random: Random, rows: int) -> Rows:
    """Draws cepstral coefficients in the range that MLCommons calibrated for."""
    steps = random.normal(size=(rows, 49, 10, 1)).cumsum(1)
    return ((3 * steps + np.r_[-40, np.zeros(9)][:, None]).clip(-123, 25).astype(np.float32),)


_TEXTS = (
    "import os\nprint(os.name)\n",
    "#include <stdio.h>\nint main(void) { return 0; }\n",
    "fn main() { loop {} }\n",
)


def code(random: Random, rows: int) -> Rows:
    """Draws source files of up to three languages."""
    texts = ["".join(random.permutation(_TEXTS)[: random.integers(1, 4)]) for _ in range(rows)]
    return (np.array(texts, object),)
