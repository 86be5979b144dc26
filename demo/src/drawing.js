/**
 * From a visitor's strokes to the image that the network sees, made to look like the drawings of Omniglot.
 *
 * A drawing is a list of strokes, a stroke a list of points [x, y] from 0 to 1 (x to the right, y down).
 *
 * Omniglot's drawings are 105 × 105 pixels of 0 (ink) and 1 (background), and the network sees every 3.75th pixel of them.
 * What follows was measured on 1,500 of them.
 */

export const SIDE = 105; // of an original drawing
export const SMALL = 28; // of what the network sees
const PEN = 5.6; // median width of a stroke
// Nine in ten drawings are between these in size (the larger of width and height) and in the middle of their bounding box.
const SIZE = [43, 89];
const MIDDLE_X = [41.5, 58.5];
const MIDDLE_Y = [40.5, 59];

/**
 * The curve through a stroke's points, as the canvas shows it: a quadratic Bézier curve from midpoint to midpoint, each
 * point being the control point between two of them. Gives the segments [[start, control, end], …].
 */
export function curves(stroke) {
  const middle = ([ax, ay], [bx, by]) => [(ax + bx) / 2, (ay + by) / 2];
  const segments = [];
  let start = stroke[0];
  for (let i = 1; i < stroke.length - 1; i++) {
    const end = middle(stroke[i], stroke[i + 1]);
    segments.push([start, stroke[i], end]);
    start = end;
  }
  const last = stroke.at(-1);
  segments.push([start, middle(start, last), last]);
  return segments;
}

/** The image of a drawing: SMALL × SMALL of 0 (ink) and 1, as Float32Array; null if there is no stroke. */
export function image(drawing) {
  if (!drawing.length) return null;
  const large = raster(likeOmniglot(drawing.map((stroke) => sampled(stroke))));
  return Float32Array.from({ length: SMALL * SMALL }, (_, i) => {
    const [row, column] = [Math.floor(i / SMALL), i % SMALL].map((at) => Math.floor(((at + 0.5) * SIDE) / SMALL));
    return large[row * SIDE + column];
  });
}

/** Points along a stroke's curve, closer to each other than the pixels are. */
function sampled(stroke) {
  const points = [];
  for (const [a, b, c] of curves(stroke)) {
    const length = Math.hypot(b[0] - a[0], b[1] - a[1]) + Math.hypot(c[0] - b[0], c[1] - b[1]);
    const count = Math.ceil(2 * SIDE * length) + 1;
    for (let i = 0; i <= count; i++) {
      const t = i / count;
      points.push([0, 1].map((d) => (1 - t) ** 2 * a[d] + 2 * t * (1 - t) * b[d] + t ** 2 * c[d]));
    }
  }
  return points;
}

/** Scales a drawing to pixels, and shrinks, enlarges and moves it as far as needed to be like those of Omniglot. */
function likeOmniglot(strokes) {
  const box = [0, 1].map((d) => {
    const values = strokes.flatMap((stroke) => stroke.map((point) => point[d] * SIDE));
    return [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  });
  const extent = Math.max(...box.map(([low, high]) => high - low)) + PEN;
  // A dot stays a dot.
  const scale = extent < 3 * PEN ? 1 : (clamp(extent, SIZE) - PEN) / (extent - PEN);
  const shift = [MIDDLE_X, MIDDLE_Y].map((range, d) => {
    const middle = (box[d][0] + box[d][1]) / 2;
    return [middle, clamp(middle, range)];
  });
  return strokes.map((stroke) =>
    stroke.map((point) => shift.map(([from, to], d) => (point[d] * SIDE - from) * scale + to)),
  );
}

function clamp(value, [low, high]) {
  return Math.min(Math.max(value, low), high);
}

/** Draws with a round pen: SIDE × SIDE of 0 (ink) and 1. */
function raster(strokes) {
  const pixels = new Uint8Array(SIDE * SIDE).fill(1);
  const radius = PEN / 2;
  for (const [x, y] of strokes.flat()) {
    for (let row = Math.max(0, Math.floor(y - radius)); row <= Math.min(SIDE - 1, y + radius); row++) {
      for (let column = Math.max(0, Math.floor(x - radius)); column <= Math.min(SIDE - 1, x + radius); column++) {
        if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius) pixels[row * SIDE + column] = 0;
      }
    }
  }
  return pixels;
}
