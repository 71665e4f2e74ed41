"""The mutants of :mod:`benchmarks.mutants`: what is replaced, and the tests that must notice it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault that is made on purpose."""

    file: str
    text: str
    """It must be in the file exactly once."""
    replacement: str
    tests: tuple[str, ...]
    """What pytest is given; at least one of these tests must fail."""


UPDATES, ORDER, DURABILITY = "training/test_updates.py", "tasks/test_order.py", "runs/test_durability.py"
FAULTS: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("pipeline/rollouts/builtin/draw.py", "rollouts/test_draw.py"): [
        ("uniforms_R[:, None] * cdf_RV[:, -1:]", "uniforms_R[:, None]"),  # what is lost goes to the likeliest token
        ("summable(truncate(probs_RV, options))", "summable(probs_RV)"),
        ("options.top_p * parts_RV.sum(-1, keepdim=True)", "options.top_p"),
        ("before_RV = running_sums(parts_RV) - parts_RV", "before_RV = running_sums(parts_RV)"),
        ("dropped_RV = before_RV >=", "dropped_RV = before_RV >"),
        ("probs_RV.masked_fill(probs_RV < threshold_R1", "probs_RV.masked_fill(probs_RV <= threshold_R1"),
        ("scatter(-1, index_RV, sorted_RV", "scatter(-1, index_RV.sort().values, sorted_RV"),
        ("logits_RV / options.temperature", "logits_RV * options.temperature"),
        ("token_R[:, None])[:, 0] - log_normaliser_R", "token_R[:, None])[:, 0] - top_R1[:, 0]"),
    ],
    ("pipeline/training/learner/losses.py", "training/test_objective.py"): [
        ("torch.expm1(-difference) + difference", "torch.expm1(difference) - difference"),
        ("(logprobs - rollout_logprobs).clamp(max=20.0).exp()", "(logprobs - rollout_logprobs).exp()"),
    ],
    ("pipeline/training/progress.py", "training/test_objective.py"): [
        ("kl_estimate(rollouts.rollout_logprobs_PKT, reference, ",
         "kl_estimate(reference, rollouts.rollout_logprobs_PKT, "),
    ],
    ("pipeline/training/learner/learner.py", UPDATES): [
        ("self.trained.clip(self.config.grad_clip)", "self.trained.clip(1e9)"),
        ("if step <= self.idle:\n            return {", "if step < self.idle:\n            return {"),
        ("step, steps = step - idle, config.steps - idle", "step, steps = step, config.steps"),
        ("\"optimizer\": optimizer_state(self.optimizer, self.trained.policy.model),", "\"optimizer\": {},"),
    ],
    ("pipeline/training/learner/replicas.py", UPDATES): [
        ("return float(clip_grad_norm_(self.policy.model.parameters(), most))",
         "return min(most, float(clip_grad_norm_(self.policy.model.parameters(), most)))"),
    ],
    ("pipeline/training/learner/optimizer_state.py", UPDATES): [
        ("name: dict(optimizer.state[parameter])",
         "name: {k: v.half() for k, v in optimizer.state[parameter].items()}"),
        ("if parameter in optimizer.state", "if parameter in optimizer.state and parameter.dim() > 1"),
        ("found[key] = laid_out(value, parameter)", "found[key] = laid_out(value.half().float(), parameter)"),
    ],
    ("pipeline/training/learner/critics.py", "training/test_token_critic.py"): [
        ("self.needs.clip).sum() / tokens", "self.needs.clip).mean()"),
        ("self.needs.clip).sum() / tokens", "None).sum() / tokens"),
        ("                objective.backward()\n",
         "                objective.backward()\n                self.optimizer.step()\n"),
        ("            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.grad_clip)\n", ""),
        ("chosen * self.config.updates_per_batch", "chosen"),
        ("            self.optimizer.zero_grad(set_to_none=True)\n        counted_RT", "        counted_RT"),
        ("            losses, tokens = [], int(", "            tokens = int("),
    ],
    ("pipeline/tasks/several/mixture.py", "tasks/test_several.py"): [
        ("self.shares[name] * after - self.taken[name]", "self.shares[name] * after"),
        ("        self.taken = dict(state[\"taken\"])\n", ""),
        ("            part.restore(state[\"parts\"][name])", "            pass"),
    ],
    ("pipeline/tasks/several/build.py", "tasks/test_several.py"): [
        ("if other != name))", "if other == name))"),
        ("for split in (\"validation\", \"heldout\")", "for split in (\"validation\",)"),
    ],
    ("pipeline/execution/measured.py", "execution/test_measured.py"): [
        ("(index + 1) % (wanted.every or 1) == 0", "index % (wanted.every or 1) == 0"),
        ("if due else 0", "if True else 0"),
        ("and key in before]", "]"),
    ],
    ("pipeline/training/early_stopping.py", "training/test_early_stopping.py"): [
        ("self.level / (1 + len(others))", "self.level"),
        ("if not falls and sum(now)", "if sum(now)"),
        ("state |= {\"others\": self.others} if self.others else {}", "state |= {}"),
    ],
    ("pipeline/training/learner/terms.py", "training/test_terms.py"): [
        ("total - (self.kl[piece]", "total + (self.kl[piece]"),
        ("entropy=entropy_weight * even_PKT", "entropy=-entropy_weight * even_PKT"),
        ("pull_PKT * keep_PKT", "pull_PKT"),
        ("options.step if below else -options.step", "-options.step if below else options.step"),
        ("return held if measured <= options.target", "return held if measured > options.target"),
    ],
    ("pipeline/training/learner/coefficients.py", "training/test_terms.py"): [
        ("(ratio < bounds[0]) | (ratio > bounds[1])", "(ratio < bounds[0]) & (ratio > bounds[1])"),
        ("keep_PKT &= ~outside_PK[..., None]", "keep_PKT &= outside_PK[..., None]"),
    ],
    ("pipeline/training/signals.py", "training/test_reference.py"): [
        ("(logprobs - chosen.reference_logprobs_PKT).sum(-1)", "(logprobs - chosen.reference_logprobs_PKT).mean(-1)"),
        ("(logprobs - chosen.reference_logprobs_PKT).sum(-1)", "(chosen.reference_logprobs_PKT - logprobs).sum(-1)"),
        ("(step - 1) % every == 0", "step % every == 0"),
        ("(step - 1) % every == 0", "(step - 2) % every == 0"),
        ("every > 0 and (step - 1)", "(step - 1)"),
        ("step > 1 and self._at_reference(step)", "step == 1"),
    ],
    ("pipeline/training/learned.py", "training/test_reference.py"): [
        ("salt=\":reference\", ", ""),
    ],
    ("pipeline/training/batches.py", "training/test_reference.py"): [
        ("self.stage.label + self.salt + more_salt", "self.stage.label + more_salt"),
    ],
    ("pipeline/training/learned.py", "training/test_wiring.py"): [
        ("return weights.where(valid if weights.dim() == 2 else valid[..., None], 0)", "return weights"),
        ("valid_PK[groups]", "valid_PK[: len(groups)]"),
    ],
    ("pipeline/training/setup.py", "training/test_wiring.py"): [
        ("HistoryResampling(stream, self.memory) if self.needs.resample else Schedule(stream)", "Schedule(stream)"),
    ],
    ("pipeline/training/batches.py", "training/test_wiring.py"): [
        ("            self.schedule.met(part)\n", ""),
    ],
    ("pipeline/training/prefetch.py", "training/test_wiring.py"): [
        ("            self.groups.restore(self._before, step)\n", ""),
        ("self.groups.cancelled, self._pending = False, None", "self.groups.cancelled = False"),
    ],
    ("pipeline/training/trainer.py", "training/test_wiring.py"): [
        ("            self.batches.drop(self.progress.step + 1)\n", ""),
        ("self.batches.drop(self.progress.step + 1)", "self.batches.drop(self.progress.step)"),
    ],
    ("stages/vapo.py", "training/test_paper_details.py"): [
        ("signals.lengths_PK, config.length_alpha", "signals.lengths_PK, config.alpha"),
        ("signals.values_P, config.alpha", "signals.values_P, config.length_alpha"),
    ],
    ("stages/gfpo.py", "training/test_paper_details.py"): [
        ("(signals.difficulty_P * 4).long()", "(signals.difficulty_P * 4).round().long()"),
    ],
    ("pipeline/advantages.py", "training/test_paper_details.py"): [
        ("variance_P1.sqrt().where(differ_P1, 1)).where(differ_P1, 0)", "variance_P1.sqrt().clamp(min=1e-9))"),
        ("& ~all_equal(rewards_PK, valid_PK), 0)", ", 0)"),
    ],
    ("pipeline/training/learner/groups.py", "training/test_joining.py"): [
        ("(0, longest - value.shape[-1])", "(longest - value.shape[-1], 0)"),
        ("groups_of(joined(parts), interleaved(places))", "joined(parts)"),
    ],
    ("pipeline/tasks/prompt_order.py", ORDER): [
        ("for row in self.stream.permutation(self.epoch).tolist()",
         "for row in sorted(self.stream.permutation(self.epoch))"),
        ("self.stream.permutation(self.epoch)", "self.stream.permutation(0)"),
        ("more = self._order[self.place : self.place + size - len(rows)]",
         "more = self._order[self.place : self.place + size - len(rows)][::-1]"),
        ("{self.seed}\\0{self.stage_label}\\0{epoch}", "{self.seed}\\0{self.stage_label}"),
        ("return self.stream.at(self.place - size, size)", "return self.stream.at(self.place - size, size)[::-1]"),
    ],
    ("pipeline/rewards/equations.py", "tasks/test_worked_steps.py"): [
        ("PRECEDENCE[operators[-1]] >= PRECEDENCE[token]", "PRECEDENCE[operators[-1]] > PRECEDENCE[token]"),
        ("result.numerator.bit_length() > MAX_BITS or ", ""),
        (" or result.denominator.bit_length() > MAX_BITS", ""),
        ("MAX_BITS = 512", "MAX_BITS = 448"),
    ],
    ("pipeline/common/files.py", DURABILITY): [
        ("            os.fsync(stream.fileno())\n        os.replace", "        os.replace"),
        ("            stream.flush()\n", ""),
        ("        os.replace(temporary, path)\n",
         "        shutil.copyfile(temporary, path)\n        temporary.unlink()\n"),
        ("    sync_folder(path.parent)\n", ""),
        ("        os.replace(making, final)\n",
         "        shutil.copytree(making, final)\n        shutil.rmtree(making)\n"),
        ("                sync_folder(path)\n", "                pass\n"),
        ("                with path.open(\"rb\") as stream:\n                    os.fsync(stream.fileno())\n",
         "                pass\n"),
        ("        sync_folder(final.parent)\n", ""),
    ],
    ("pipeline/runs/checkpoint.py", DURABILITY): [
        ("if digest == digest_of(raw):", "if digest:"),
        ("digest = raw.pop(SEAL)", "digest = raw.pop(SEAL, digest_of(raw))"),
        ("record.parent == parent and record.resumable", "record.resumable"),
    ],
    ("pipeline/common/records.py", "runs/test_records.py"): [
        ("return fields[SEAL] != digest_of(_without(fields, SEAL))", "return False"),
        ("return any(fields[key] == digest_of(_without(fields, key)) for key in texts)", "return False"),
    ],
    ("pipeline/training/learned.py", DURABILITY): [
        ("assert read_record(checkpoint).parent == self.setup.parent,", "assert read_record(checkpoint),"),
    ],
    ("pipeline/training/checkpoints.py", DURABILITY): [
        ("            setup.journal.sync()  # the curves up to here are as safe as the weights\n", ""),
    ],
    ("pipeline/tracking/journal.py", DURABILITY): [
        ("            os.fsync(self._file)\n", "            pass\n"),
        ("        if self.lost:\n", "        if False:\n"),
    ],
    ("pipeline/training/learner/learner.py", f"{UPDATES}::test_a_gradient_below_the_bound_is_left_alone"): [
        ("self.trained.clip(self.config.grad_clip)", "self.trained.clip(self.config.grad_clip / 2)"),
    ],
    ("pipeline/tasks/prompt_order.py", f"{ORDER}::test_each_epoch_is_another_permutation_of_all_prompts"): [
        ("{self.seed}\\0{self.stage_label}", "{self.stage_label}"),
        ("{self.seed}\\0{self.stage_label}", "{self.seed}"),
    ],
    ("pipeline/tasks/prompt_order.py", f"{ORDER}::test_rows_are_read_in_the_order_that_is_asked_for"): [
        ("dataset[[int(i) for i in indices]]", "dataset[sorted(int(i) for i in indices)]"),
    ],
    ("pipeline/rewards/equations.py", "tasks/test_worked_steps.py::test_a_sign_binds_before_any_operation"): [
        ("\"~\": 3", "\"~\": 0"),
    ],
    ("pipeline/tracking/journal.py", f"{DURABILITY}::test_an_event_is_one_write_of_a_whole_line"): [
        ("os.write(self._file, line) != len(line)",
         "sum(os.write(self._file, line[n : n + 1]) for n in range(len(line))) != len(line)"),
    ],
    ("pipeline/training/checkpoints.py", f"{DURABILITY}::test_a_stage_s_checkpoints_say_whose_they_are"): [
        ("setup.parent, setup.fingerprint, write", "setup.fingerprint, setup.parent, write"),
    ],
}  # fmt: skip
"""(file, test below tests/pipeline) -> (text, replacement) of each mutant."""

MUTANTS = [
    Mutant(file, text, replacement, (f"tests/pipeline/{tests}",))
    for (file, tests), replacements in FAULTS.items()
    for text, replacement in replacements
]
