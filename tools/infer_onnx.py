"""Run an exported detector on images with onnxruntime or OpenVINO, OpenCV and NumPy alone.

Examples:
    python tools/infer_onnx.py smca.onnx street.jpg park.jpg --out-dir found
    python tools/infer_onnx.py smca.xml *.jpg --batch-size 4 --streams 2

A template for applications: it imports neither PyTorch nor MMDetection nor this package. A .onnx
file runs in onnxruntime, a .xml file in OpenVINO.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np

# Maps a batch of images and their sizes to boxes, scores and labels; thread-safe.
Run = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]


def read(path: str) -> np.ndarray:
    """Read an image as BGR, (H, W, 3), uint8."""
    if Path(path).is_dir():
        raise ValueError(f'{path} is a folder: name the images in it, for example {path}/*.jpg')
    try:
        content = np.fromfile(path, np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    except OSError as error:
        raise ValueError(f'{path} cannot be read: {error.strerror}') from error
    except cv2.error:  # It has more pixels than OpenCV accepts.
        image = None
    if image is None:
        raise ValueError(f'{path} is not an image that OpenCV can read')
    return image


def resize(path: str, image: np.ndarray, scale: Sequence[int]) -> np.ndarray:
    """Resize as in training, to the largest size within scale: (long, short side) in pixels."""
    sides = sorted(image.shape[:2], reverse=True)
    factor = min(limit / side for limit, side in zip(scale, sides, strict=True))
    height, width = (int(side * factor + 0.5) for side in image.shape[:2])
    if not height or not width:
        raise ValueError(
            f'{path} has {image.shape[0]} x {image.shape[1]} pixels, resized {height} x {width}: '
            'cut it into shorter pieces'
        )
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def pad(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pad images into a batch; the sizes (height, width) tell the detector what to ignore."""
    sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    batch = np.zeros((len(images), *sizes.max(axis=0), 3), dtype=np.uint8)
    for padded, image in zip(batch, images, strict=True):
        padded[: image.shape[0], : image.shape[1]] = image
    return batch, sizes


def runtime(name: str, path: str) -> ModuleType:
    """Import the runtime that a file needs."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f'{path} needs {name}: pip install {name}') from error


def start_onnxruntime(path: str, threads: int) -> tuple[Run, dict[str, str]]:
    """Load a graph and the metadata that its export stored in it."""
    onnxruntime = runtime('onnxruntime', path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Attention weights far from a Gaussian are denormal numbers, which are slow on many CPUs.
    options.add_session_config_entry('session.set_denormal_as_zero', '1')
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])

    def run(images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        return session.run(['boxes', 'scores', 'labels'], {'images': images, 'sizes': sizes})

    return run, session.get_modelmeta().custom_metadata_map


def start_openvino(
    path: str, threads: int, streams: int, precision: str | None = None
) -> tuple[Run, dict[str, str]]:
    """Load a model and the metadata that its export stored in it."""
    openvino = runtime('openvino', path)
    core = openvino.Core()
    model = core.read_model(path)
    settings: dict[str, int | str] = {'NUM_STREAMS': streams, 'INFERENCE_NUM_THREADS': threads}
    if precision:
        settings['INFERENCE_PRECISION_HINT'] = precision
    compiled = core.compile_model(model, 'CPU', settings)

    def run(images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        found = compiled.create_infer_request().infer({'images': images, 'sizes': sizes})
        return tuple(found[name] for name in ('boxes', 'scores', 'labels'))

    keys = [key for key in ('classes', 'scale') if model.has_rt_info(['mmsmca', key])]
    return run, {key: model.get_rt_info(['mmsmca', key]).astype(str) for key in keys}


def start(
    path: str, threads: int, streams: int, precision: str | None = None
) -> tuple[Run, list[str], list[int]]:
    """Load a detector, its class names and its scale."""
    openvino = path.endswith('.xml')
    try:
        run, stored = (
            start_openvino(path, threads, streams, precision)
            if openvino
            else start_onnxruntime(path, threads)
        )
    except Exception as error:  # the runtimes' errors share no base class
        if isinstance(error, ValueError):
            raise
        name = 'OpenVINO' if openvino else 'onnxruntime'
        reason = ' '.join(str(error).split())
        raise ValueError(f'{path} cannot be loaded by {name}: {reason}') from error
    if not {'classes', 'scale'} <= stored.keys():
        tool = 'export_openvino.py' if openvino else 'export_onnx.py'
        raise ValueError(f'{path} lacks its classes or scale: export it with tools/{tool}')
    return run, json.loads(stored['classes']), json.loads(stored['scale'])


def drawing(image: str, out_dir: Path) -> Path:
    """Path of the drawing of an image; PNG unless the image's name says JPEG or PNG."""
    path = out_dir / Path(image).name
    keeps = path.suffix.lower() in ('.jpg', '.jpeg', '.png')
    return path if keeps else path.with_name(f'{path.name}.png')


def check_destination(images: Sequence[str], out_dir: Path) -> None:
    """Create the folder; refuse to overwrite an image, or the drawing of another image."""
    sources = {Path(image).resolve() for image in images}
    drawn: dict[Path, str] = {}
    for image in images:
        path = drawing(image, out_dir)
        if path.resolve() in sources:
            raise ValueError(f'--out-dir {out_dir} is the folder of {image}: choose another one')
        if path in drawn:
            raise ValueError(
                f'{drawn[path]} and {image} would both be drawn as {path}: run them one at a time, '
                'with different --out-dir'
            )
        drawn[path] = image
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f'--out-dir {out_dir} cannot be created: {error.strerror}') from error


def write(image: np.ndarray, path: Path) -> None:
    """Write an image in the format that the path's suffix names."""
    done, content = cv2.imencode(path.suffix, image)
    if not done:  # A JPEG has at most 65,500 columns, for example.
        raise ValueError(f'{path} cannot be written: OpenCV cannot encode the image so')
    try:
        path.write_bytes(content.tobytes())
    except OSError as error:
        raise ValueError(f'{path} cannot be written: {error.strerror}') from error


def draw(image: np.ndarray, box: np.ndarray, text: str) -> None:
    """Draw a detection into the image."""
    left, top, right, bottom = (int(round(side)) for side in box.tolist())
    cv2.rectangle(image, (left, top), (right, bottom), (0, 0, 255), 1)
    cv2.putText(
        image, text, (left, max(top - 3, 9)), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 255), 1
    )


def positive(text: str) -> int:
    """Parse a number of at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is less than 1')
    return int(text)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model', help='exported detector, .onnx or .xml')
    parser.add_argument('images', nargs='+', help='image files')
    parser.add_argument(
        '--batch-size', type=positive, default=1, help='images per batch; default: 1'
    )
    parser.add_argument('--threshold', type=float, default=0.3, help='minimum score; default: 0.3')
    parser.add_argument('--threads', type=positive, default=0, help='default: one per core')
    parser.add_argument(
        '--streams', type=positive, default=1, help='batches in parallel; default: 1'
    )
    parser.add_argument(
        '--precision', choices=('f32', 'bf16'),
        help="OpenVINO's, where the file sets none; default: the fast one on this machine",
    )  # fmt: skip
    parser.add_argument('--out-dir', type=Path, help='folder for images with the detections drawn')
    return parser.parse_args()


def describe(
    path: str, image: np.ndarray, detections: Sequence[np.ndarray], args: argparse.Namespace
) -> list[str]:
    """Describe an image's detections, a line each; draw them if ``--out-dir`` is given."""
    lines = []
    for box, score, name in zip(*detections, strict=True):
        if score < args.threshold:
            break  # Scores are sorted.
        lines.append(f'{path} {name} {score:.3f} ' + ' '.join(f'{side:.1f}' for side in box))
        if args.out_dir:
            draw(image, box, f'{name} {score:.2f}')
    if args.out_dir:
        write(image, drawing(path, args.out_dir))
    return lines


def detect(args: argparse.Namespace) -> bool:
    """Detect, print the detections and the time taken; return whether all images could be used."""
    if args.out_dir:
        check_destination(args.images, args.out_dir)
    run, classes, scale = start(args.model, args.threads, args.streams, args.precision)

    def detect_batch(paths: Sequence[str]) -> tuple[list[str], list[str], float]:
        """Lines about detections, lines about images that cannot be used, the runtime's seconds."""
        lines, problems, images, seconds = [], [], [], 0.0
        for path in paths:
            try:
                image = read(path)
                images.append((path, image, resize(path, image, scale)))
            except ValueError as error:
                problems.append(str(error))
        if images:
            batch, sizes = pad([resized for _, _, resized in images])
            begin = time.perf_counter()
            found = run(batch, sizes)
            seconds = time.perf_counter() - begin
            for (path, image, _), size, boxes, scores, labels in zip(
                images, sizes, *found, strict=True
            ):
                # Scales boxes from the resized image to the original.
                boxes = boxes * np.tile(np.array(image.shape[1::-1]) / size[::-1], 2)
                names = [classes[label] for label in labels]
                try:
                    lines += describe(path, image, (boxes, scores, names), args)
                except ValueError as error:
                    problems.append(str(error))
        return lines, problems, seconds

    # The first run takes longer: memory is allocated.
    run(*pad([np.zeros((*scale[::-1], 3), np.uint8)]))
    begin, latencies, complete = time.perf_counter(), [], True
    batches = [
        args.images[i : i + args.batch_size] for i in range(0, len(args.images), args.batch_size)
    ]
    with ThreadPoolExecutor(args.streams) as pool:
        for lines, problems, seconds in pool.map(detect_batch, batches):
            print(*lines, sep='\n', end='\n' * bool(lines))
            for problem in problems:
                complete = False
                print(f'infer_onnx.py: error: {problem}', file=sys.stderr)
            if seconds:
                latencies.append(seconds)
    if latencies:
        rate = len(args.images) / (time.perf_counter() - begin)
        median = statistics.median(latencies) * 1e3
        print(
            f'latency: {median:.1f} ms per batch of {args.batch_size} (median of '
            f'{len(latencies)}); {rate:.1f} images/s, reading and writing included'
        )
    return complete


def main() -> int:
    """Detect; an unusable image or detector gives a one-line error, and the exit status 2."""
    args = parse_args()
    # File names may have characters that the terminal's encoding lacks.
    sys.stdout.reconfigure(errors='backslashreplace')
    try:
        return 0 if detect(args) else 2
    except ValueError as error:
        print(f'infer_onnx.py: error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
