"""Box arithmetic for detection: coding, overlap, and exact greedy non-maximum suppression.

In: boxes and scores as float32 tensors; boxes are corners (x0, y0, x1, y1), anchors are centres (cx, cy, w, h), both
in the unit of the caller, the same for all. Out: chosen boxes. Never imports torchvision (its compiled
operators are not in the CPU build). On CUDA nothing waits for the device, `select_by_chunks` and the eager functions
apart, so that a CUDA graph can hold it.

`decode`, `keep_best` and the two forms of selection are scriptable and batched, with fixed output shapes, and each
picture of a batch gets the same result as alone. The two forms return the same: `select_by_steps` does a fixed amount
of work on any device and never reads a value; `select_by_chunks` reads values and stops early, which is several times
faster on a CPU. `greedy_nms` is the plain definition that both are tested against; it also serves policies that have no
fixed output shape.

Rules of suppression, the same in all of it (shared by torchvision, mmcv and ml-cvnets):

- the best score is taken first, and an equal score keeps the earlier candidate;
- a candidate goes when its IoU with a taken box of its class is above the threshold, strictly;
- an undefined IoU (two boxes without area, or overflowed ones) removes nothing.
"""

import math

import torch
from torch import Tensor

# mmdetection and torchvision bound the size factor exp(t) by this: 1000 / 16.
MAX_LOG_SIZE = math.log(1000.0 / 16.0)


def at_most_float32(value: float) -> float:
    """Return the largest float32 number that is not above `value`.

    torch rounds a Python number to float32 before it compares it with a float32 tensor, so `iou > 0.55` keeps an IoU
    of 11/20, whose float32 lies above 0.55. `iou > at_most_float32(0.55)` compares as double arithmetic would.
    """
    rounded = torch.tensor(value, dtype=torch.float32)
    if float(rounded) > value:
        rounded = torch.nextafter(rounded, torch.tensor(-math.inf))
    return float(rounded)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair: [A, 4] and [B, 4] corners to [A, B].

    Areas are (x1 - x0)(y1 - y0), without the +1 of pixel conventions; 0 / 0 is NaN.
    """
    ax0, ay0, ax1, ay1 = first.t().contiguous().unsqueeze(2).unbind(0)  # each [A, 1]
    bx0, by0, bx1, by1 = second.t().contiguous().unsqueeze(1).unbind(0)  # each [1, B]
    shared = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp_(min=0.0)  # [A, B]
    shared *= (torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp_(min=0.0)
    either = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared
    return shared / either


def corners(anchors: Tensor) -> Tensor:
    """Turn (cx, cy, w, h) into (x0, y0, x1, y1): [..., 4] to [..., 4]."""
    half = anchors[..., 2:] / 2.0
    return torch.cat([anchors[..., :2] - half, anchors[..., :2] + half], dim=-1)


def decode(
    deltas: Tensor,
    anchors: Tensor,
    *,
    log_size_low: float,
    log_size_high: float,
    centre_scale: float,
    size_scale: float,
) -> Tensor:
    """Apply predicted box deltas to anchors.

    Args:
        deltas: float32 [..., A, 4] as the network predicts them: centre shift in anchor sizes, then log size.
        anchors: float32 [..., A, 4], (cx, cy, w, h).
        log_size_low: lower bound of the scaled log size; mmdetection has -MAX_LOG_SIZE, the others none (-inf).
        log_size_high: upper bound; mmdetection and torchvision have MAX_LOG_SIZE, cvnets none (inf).
        centre_scale: of the centre shifts; every SSD has 0.1, RetinaNet 1.
        size_scale: of the log sizes; every SSD has 0.2, RetinaNet 1.

    Returns:
        Corners, float32 [..., A, 4], in the unit of the anchors, not clipped.

    """
    size = anchors[..., 2:]
    centre = anchors[..., :2] + centre_scale * deltas[..., :2] * size
    half = size * torch.exp((size_scale * deltas[..., 2:]).clamp(log_size_low, log_size_high)) / 2.0
    return torch.cat([centre - half, centre + half], dim=-1)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Invert `decode` of an SSD without its bounds: corners [..., A, 4] and anchors [A, 4] to deltas [..., A, 4]."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2.0
    shift = (centre - anchors[..., :2]) / anchors[..., 2:] / 0.1
    return torch.cat([shift, torch.log(size / anchors[..., 2:]) / 0.2], dim=-1)


def keep_best(scores: Tensor, count: int) -> Tensor:
    """Keep the `count` best of each row and set the others to 0; an equal score keeps the earlier one.

    Args:
        scores: float32 [..., L], candidates above 0.
        count: how many to keep, at least 1.

    """
    if scores.size(-1) <= count:
        return scores
    # On a CPU, reading a value costs no waiting, so the work below is skipped where it changes nothing.
    if not scores.is_cuda and not bool(((scores > 0).sum(dim=-1) > count).any()):
        return scores
    last = torch.topk(scores, count, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)  # [..., 1]
    above = scores > last
    ties = scores == last
    room = count - above.sum(dim=-1, keepdim=True)  # [..., 1]
    if scores.is_cuda or bool((ties.sum(dim=-1, keepdim=True) > room).any()):
        ties = ties & (ties.cumsum(dim=-1) <= room)
    return torch.where(above | ties, scores, torch.zeros_like(scores))


def select_by_steps(
    boxes: Tensor, scores: Tensor, *, iou_threshold: float, max_detections: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Greedy suppression per class, then the best of all classes: exact, in `max_detections` steps of equal work.

    Each step takes the best candidate left in any class and suppresses within its class. The detections so come
    out best first, and those after the last are never computed. Equal scores in different classes: the lower class
    first. Shapes and work depend on the arguments' shapes alone, so a CUDA graph can hold it.

    Args:
        boxes: float32 [N, A, 4] corners, one box per anchor for all classes.
        scores: float32 [N, C, A]; candidates are those above 0.
        iou_threshold: compared as a float32; see `at_most_float32`.
        max_detections: M.

    Returns:
        boxes float32 [N, M, 4], scores float32 [N, M] descending, labels int32 [N, M] in 0..C-1, counts int32 [N].
        Rows from the count on are 0.

    """
    pictures, _, anchors = scores.shape
    found_scores = scores.new_zeros([pictures, max_detections])
    found_labels = torch.zeros([pictures, max_detections], dtype=torch.int64, device=scores.device)
    found_anchors = torch.zeros([pictures, max_detections], dtype=torch.int64, device=scores.device)
    left = scores.clone()
    best_of_class = left.amax(dim=2)  # [N, C]
    low = boxes[:, :, :2].transpose(1, 2).contiguous()  # [N, A, 2] -> [N, 2, A]
    high = boxes[:, :, 2:].transpose(1, 2).contiguous()
    sides = high - low
    area = sides[:, 0] * sides[:, 1]  # [N, A]
    for step in range(max_detections):
        best, label = best_of_class.max(dim=1, keepdim=True)  # [N, 1]; the first of equals
        row_index = label.unsqueeze(2).expand(-1, -1, anchors)  # [N, 1] -> [N, 1, A]
        row = left.gather(1, row_index).squeeze(1)  # [N, A]: the chosen class
        anchor = row.argmax(dim=1, keepdim=True)  # [N, 1]; the first of equals
        corner_index = anchor.unsqueeze(1).expand(-1, 2, -1)  # [N, 1] -> [N, 2, 1]
        shared_low = torch.maximum(low, low.gather(2, corner_index))  # [N, 2, A]
        shared_sides = torch.minimum(high, high.gather(2, corner_index)).sub_(shared_low).clamp_(min=0.0)
        shared = shared_sides[:, 0] * shared_sides[:, 1]  # [N, A]
        iou = shared / (area.gather(1, anchor) + area - shared)
        row.masked_fill_(iou > iou_threshold, 0.0)
        row.scatter_(1, anchor, 0.0)  # itself, also where its area is 0
        left.scatter_(1, row_index, row.unsqueeze(1))
        best_of_class.scatter_(1, label, row.amax(dim=1, keepdim=True))
        found_scores[:, step : step + 1] = best
        found_labels[:, step : step + 1] = label
        found_anchors[:, step : step + 1] = anchor
    # A picture with no candidates left took rows of score 0.
    found = found_scores > 0  # [N, M]
    found_boxes = boxes.gather(1, found_anchors.unsqueeze(2).expand(-1, -1, 4))  # [N, M, 4]
    found_boxes = torch.where(found.unsqueeze(2), found_boxes, torch.zeros_like(found_boxes))
    labels = torch.where(found, found_labels, torch.zeros_like(found_labels)).to(torch.int32)
    return found_boxes, found_scores, labels, found.sum(dim=1).to(torch.int32)


def select_by_chunks(
    boxes: Tensor, scores: Tensor, *, iou_threshold: float, max_detections: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `select_by_steps` returns for boxes [N, A, 4] and scores [N, C, A], with less work. For CPUs.

    Candidates are taken in order of score, a chunk at a time, until enough are found: what comes later in the order
    can never change what was kept before.
    """
    pictures, _, anchors = scores.shape
    found_boxes = boxes.new_zeros([pictures, max_detections, 4])
    found_scores = scores.new_zeros([pictures, max_detections])
    labels = torch.zeros([pictures, max_detections], dtype=torch.int32, device=scores.device)
    counts = torch.zeros([pictures], dtype=torch.int32, device=scores.device)
    for picture in range(pictures):
        flat = scores[picture].flatten()  # [C, A] -> [C*A]
        found = _first_kept(boxes[picture], flat, iou_threshold, max_detections)  # [D], D <= M
        count = found.size(0)
        found_boxes[picture, :count] = boxes[picture, found % anchors]
        found_scores[picture, :count] = flat[found]
        labels[picture, :count] = torch.div(found, anchors, rounding_mode="floor").to(torch.int32)
        counts[picture] = count
    return found_boxes, found_scores, labels, counts


def _first_kept(boxes: Tensor, flat: Tensor, iou_threshold: float, max_detections: int) -> Tensor:
    """Positions in `flat` of the best survivors of one picture: boxes [A, 4], scores [C*A] -> int64 [D], best first."""
    chunk_size = 256  # the work of a chunk grows with its square; most pictures need one or two
    anchors = boxes.size(0)
    kept = torch.zeros([0], dtype=torch.int64, device=flat.device)
    waiting = torch.nonzero(flat > 0).squeeze(1)  # ascending: lower class first, then earlier anchor
    while waiting.size(0) > 0 and kept.size(0) < max_detections:
        values = flat[waiting]
        batch = waiting
        waiting = waiting[:0]
        if batch.size(0) > 8 * chunk_size:
            # Sort the best first, with all that equal the last of them; the others are hardly ever needed.
            front = values >= torch.topk(values, 4 * chunk_size, sorted=False).values.amin()
            waiting = batch[~front]
            batch = batch[front]
            values = values[front]
        batch = batch[torch.sort(values, stable=True, dim=0, descending=True).indices]
        start = 0
        while start < batch.size(0) and kept.size(0) < max_detections:
            chunk = batch[start : start + chunk_size]
            start += chunk_size
            chunk_boxes = boxes[chunk % anchors]  # [B, 4]
            chunk_labels = torch.div(chunk, anchors, rounding_mode="floor")
            kept_labels = torch.div(kept, anchors, rounding_mode="floor")
            met = box_iou(boxes[kept % anchors], chunk_boxes) > iou_threshold  # [D, B]
            free = ~(met & (kept_labels.unsqueeze(1) == chunk_labels)).any(dim=0)  # [B]: of those kept before
            met = box_iou(chunk_boxes, chunk_boxes) > iou_threshold  # [B, B]
            removes = (
                (met & (chunk_labels.unsqueeze(1) == chunk_labels)).triu(1).to(torch.float32)
            )  # row removes column
            # A box stays if no earlier kept box removes it. Each repetition decides one more link of every chain of
            # overlaps; when nothing changes any more, the result is that of the greedy loop.
            keep = free
            settled = False
            while not settled:
                again = free & (keep.to(torch.float32) @ removes == 0)
                settled = bool(torch.equal(again, keep))
                keep = again
            kept = torch.cat([kept, chunk[keep]])
    return kept[:max_detections]


def greedy_nms(boxes: Tensor, scores: Tensor, labels: Tensor, *, iou_threshold: float) -> Tensor:
    """Suppress within each label, by definition: a loop over the candidates of one picture. Eager only.

    Args:
        boxes: float32 [L, 4] corners.
        scores: float32 [L].
        labels: integer [L]; boxes of different labels never meet.
        iou_threshold: compared in double arithmetic.

    Returns:
        Indices of the kept candidates, int64, best first, equal scores in input order.

    """
    order = torch.sort(scores, descending=True, stable=True).indices
    threshold = at_most_float32(iou_threshold)
    removed = torch.zeros(scores.shape[0], dtype=torch.bool)
    kept: list[int] = []
    for index in order.tolist():
        if removed[index]:
            continue
        kept.append(index)
        removed |= (labels == labels[index]) & (box_iou(boxes[index : index + 1], boxes)[0] > threshold)
    return torch.tensor(kept, dtype=torch.int64)


def detections_by_class(
    boxes: Tensor, scores: Tensor, *, score_threshold: float, iou_threshold: float, keep_per_class: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Post-process one picture as ml-cvnets v0.1 did: no limit before suppression, none over all classes. Eager only.

    Args:
        boxes: float32 [A, 4] corners.
        scores: float32 [A, C], classes without background.
        score_threshold: candidates are strictly above it.
        iou_threshold: see `greedy_nms`.
        keep_per_class: the best kept in each class after suppression.

    Returns:
        boxes [D, 4], scores [D], labels int64 [D] in 0..C-1: classes ascending, and by score within a class.

    """
    kept_anchors: list[Tensor] = [torch.zeros(0, dtype=torch.int64)]
    kept_labels: list[Tensor] = [torch.zeros(0, dtype=torch.int64)]
    for label in range(scores.shape[1]):
        candidates = torch.nonzero(scores[:, label] > score_threshold).squeeze(1)  # [L]
        same_label = torch.zeros_like(candidates)
        kept = greedy_nms(boxes[candidates], scores[candidates, label], same_label, iou_threshold=iou_threshold)
        anchors = candidates[kept[:keep_per_class]]
        kept_anchors.append(anchors)
        kept_labels.append(torch.full_like(anchors, label))
    anchor = torch.cat(kept_anchors)
    label_of = torch.cat(kept_labels)
    return boxes[anchor], scores[anchor, label_of], label_of
