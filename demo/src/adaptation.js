/** A learner on its way through the inner loop, which remembers the state after every step. */
export class Adaptation {
  constructor(learner) {
    this.learner = learner;
    this.path = [learner.state];
    this.support = null;
  }

  /** The inner steps taken so far. */
  get steps() {
    return this.path.length - 1;
  }

  /** Goes back to the initialization, for a new image of each class. */
  restart(support) {
    this.support = support;
    this.path.length = 1;
  }

  /** Takes one more step. */
  advance() {
    this.learner.state = this.path.at(-1);
    this.learner.step(this.support);
    this.path.push(this.learner.state);
  }

  /** The probability of each class for an image, after so many of the steps taken. */
  probabilities(query, steps) {
    this.learner.state = this.path[steps];
    return this.learner.probabilities(this.support, query);
  }
}
