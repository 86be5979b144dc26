/** What the page opens on: a drawing for each class, and one more of the first to classify. */

const arc = (x, y, radius, from, to, squeeze = 1) =>
  Array.from({ length: 25 }, (_, i) => {
    const angle = from + ((to - from) * i) / 24;
    return [x + radius * Math.cos(angle), y + squeeze * radius * Math.sin(angle)];
  });

/** A stroke along corners, with points on the way so that the curve keeps the corners. */
const lines = (...corners) =>
  corners
    .slice(1)
    .flatMap(([x, y], i) =>
      Array.from({ length: 12 }, (_, k) => [0, 1].map((d) => corners[i][d] + ([x, y][d] - corners[i][d]) * (k / 11))),
    );

export const CLASSES = [
  [arc(0.34, 0.5, 0.2, -1.4, 3.3), lines([0.72, 0.24], [0.7, 0.78])],
  [lines([0.24, 0.3], [0.76, 0.28]), lines([0.52, 0.29], [0.48, 0.76], [0.3, 0.68])],
  [lines([0.26, 0.74], [0.38, 0.28], [0.52, 0.7], [0.62, 0.3], [0.76, 0.74])],
  [arc(0.5, 0.37, 0.14, 2.8, 7.6), arc(0.48, 0.64, 0.15, -1.4, 2.9)],
  [lines([0.3, 0.26], [0.3, 0.76]), lines([0.7, 0.26], [0.7, 0.76]), lines([0.3, 0.52], [0.7, 0.48])],
];

export const QUERY = [arc(0.38, 0.54, 0.18, -1.2, 3.6, 1.1), lines([0.7, 0.3], [0.72, 0.76])];
