"""Detect on images with a graph of tools/export_onnx.py: onnxruntime, OpenCV and NumPy alone.

Example: python tools/infer_onnx.py smca.onnx street.jpg park.jpg --out-dir found

A template for applications: neither PyTorch nor MMDetection nor this package is imported.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


def read(path: str) -> np.ndarray:
    """Read an image, BGR, (H, W, 3), uint8."""
    image = cv2.imread(path)
    if image is None:
        raise ValueError(f'{path} does not exist or is no image that OpenCV reads')
    return image


def resize(image: np.ndarray, scale: tuple[int, int]) -> np.ndarray:
    """Resize as in training, to the largest size within (long side, short side) in pixels."""
    sides = sorted(image.shape[:2], reverse=True)
    factor = min(limit / side for limit, side in zip(scale, sides, strict=True))
    height, width = (int(side * factor + 0.5) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def pad(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Join images of different sizes; with the sizes (height, width), what is beside is ignored."""
    sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    batch = np.zeros((len(images), *sizes.max(axis=0), 3), dtype=np.uint8)
    for padded, image in zip(batch, images, strict=True):
        padded[: image.shape[0], : image.shape[1]] = image
    return batch, sizes


def start_session(path: str, threads: int) -> tuple[onnxruntime.InferenceSession, dict]:
    """Load a graph and what its export stored beside it: classes and scale."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Attention weights far from a Gaussian are such numbers, and slow on many processors.
    options.add_session_config_entry('session.set_denormal_as_zero', '1')
    try:
        session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # onnxruntime's have no common base class
        reason = str(error).splitlines()[0]
        raise ValueError(f'{path} cannot be loaded by onnxruntime: {reason}') from error
    metadata = session.get_modelmeta().custom_metadata_map
    if not {'classes', 'scale'} <= metadata.keys():
        raise ValueError(f'{path} has no classes and scale: export it with tools/export_onnx.py')
    return session, {key: json.loads(metadata[key]) for key in ('classes', 'scale')}


def check_destination(images: Sequence[str], out_dir: Path) -> None:
    """Refuse to draw over an image, or over what was drawn of another of the same name."""
    names: dict[str, str] = {}
    for image in images:
        path = Path(image)
        if path.resolve() == (out_dir / path.name).resolve():
            raise ValueError(f'--out-dir {out_dir} is the folder of {image}: name another one')
        if path.name in names:
            raise ValueError(
                f'{names[path.name]} and {image} have the same name, so that one would be drawn '
                'over the other: detect in them one after the other, in different folders'
            )
        names[path.name] = image


def draw(image: np.ndarray, box: np.ndarray, text: str) -> None:
    """Draw a detection into the image."""
    left, top, right, bottom = (int(round(side)) for side in box.tolist())
    cv2.rectangle(image, (left, top), (right, bottom), (0, 0, 255), 1)
    cv2.putText(
        image, text, (left, max(top - 3, 9)), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 255), 1
    )


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model', help='graph, .onnx')
    parser.add_argument('images', nargs='+', help='image files')
    parser.add_argument('--batch-size', type=int, default=1, help='images at once; default: 1')
    parser.add_argument('--threshold', type=float, default=0.3, help='least score; default: 0.3')
    parser.add_argument('--threads', type=int, default=0, help='default: one a core')
    parser.add_argument('--out-dir', type=Path, help='folder to draw the detections in')
    return parser.parse_args()


def detect(args: argparse.Namespace) -> None:
    """Detect, print what is found and how long it took."""
    if args.out_dir:
        check_destination(args.images, args.out_dir)
    session, metadata = start_session(args.model, args.threads)
    classes, scale = metadata['classes'], metadata['scale']
    if args.out_dir:
        args.out_dir.mkdir(parents=True, exist_ok=True)

    seconds = []
    for start in range(0, len(args.images), args.batch_size):
        paths = args.images[start : start + args.batch_size]
        images = [read(path) for path in paths]
        resized, sizes = pad([resize(image, scale) for image in images])
        inputs = {'images': resized, 'sizes': sizes}
        if not seconds:
            session.run(None, inputs)  # The first run takes longer: memory is allocated.
        begin = time.perf_counter()
        boxes, scores, labels = session.run(['boxes', 'scores', 'labels'], inputs)
        seconds.append(time.perf_counter() - begin)

        for i, (path, image) in enumerate(zip(paths, images, strict=True)):
            # From pixels of the resized image to those of the file.
            factors = np.array(image.shape[1::-1]) / sizes[i, ::-1]
            own_boxes = boxes[i] * np.tile(factors, 2)
            for box, score, label in zip(own_boxes, scores[i], labels[i], strict=True):
                if score < args.threshold:
                    break  # The best come first.
                print(path, classes[label], f'{score:.3f}', *(f'{side:.1f}' for side in box))
                if args.out_dir:
                    draw(image, box, f'{classes[label]} {score:.2f}')
            if args.out_dir:
                cv2.imwrite(str(args.out_dir / Path(path).name), image)
    median = statistics.median(seconds) * 1e3
    print(f'latency: {median:.1f} ms a batch of {args.batch_size} (median of {len(seconds)})')


def main() -> int:
    """Detect; an image or graph that cannot be used ends it with one line."""
    args = parse_args()
    try:
        detect(args)
    except ValueError as error:
        print(f'infer_onnx.py: error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
