"""Corrected copies of annotation files."""

import json

from mmsmca.files import atomic_write

from .coco_file import ID, is_box, is_marked, is_usable, load_json


def write_corrected(source: str, destination: str) -> list[str]:
    """Write a copy of an annotation file without the faults that have a single remedy.

    Ids of images and categories stay as they are if they are numbers, also 0; so do boxes, names
    and sizes.

    Args:
        source: A file in COCO's format.
        destination: The copy.

    Returns:
        What was changed, a line for each kind of change.
    """
    content = load_json(source)
    done = ['removed the byte order mark'] if is_marked(source) else []
    entries = [one for one in content.get('annotations', []) if isinstance(one, dict)]
    for name, key in (('images', 'image_id'), ('categories', 'category_id')):
        listed = [one for one in content[name] if isinstance(one, dict)]
        ids = [one.get('id') for one in listed]
        unique = all(map(ID.fits, ids)) and len(set(ids)) == len(ids)
        if unique and any(isinstance(i, str) for i in ids):
            numbers = {old: new for new, old in enumerate(ids, 1)}
            for one in listed:
                one['id'] = numbers[one['id']]
            for entry in entries:
                if ID.fits(entry.get(key)):
                    entry[key] = numbers.get(entry[key], entry[key])
            done.append(f'numbered the {len(ids)} {name} from 1')
    ids = [entry.get('id') for entry in entries]
    if not all(map(is_usable, ids)) or len(set(ids)) < len(ids):
        for i, entry in enumerate(entries, 1):
            entry['id'] = i
        done.append(f'numbered the {len(ids)} annotations from 1')
    added = 0
    for entry in entries:
        added += 'iscrowd' not in entry
        entry.setdefault('iscrowd', 0)
    if added:
        done.append(f"added 'iscrowd': 0 (a single object) to {added} annotations")
    unsized = [one for one in entries if 'area' not in one and is_box(one.get('bbox'))]
    for entry in unsized:
        entry['area'] = entry['bbox'][2] * entry['bbox'][3]
    if unsized:
        done.append(f"added 'area' to {len(unsized)} annotations: width x height of the box")
    with atomic_write(destination) as partial:
        partial.write_text(json.dumps(content))
    return done
