from __future__ import annotations

from app.server.job_queue import LONGEST_RETRY_SECONDS, JobQueue
from app.store import Job


def jobs(app_id: str, count: int) -> list[Job]:
    return [Job(app_id, 0, str(n)) for n in range(count)]


def drain(queue: JobQueue) -> list[Job]:
    found = []
    while job := queue.next():
        found.append(job)
    return found


def test_next__many_jobs_of_one_app__serves_the_apps_in_turn() -> None:
    queue = JobQueue()
    queue.update([*jobs("busy", 3), *jobs("quiet", 1), *jobs("third", 2)], 0)
    assert [(job.app_id, job.cohort_id) for job in drain(queue)] == [
        *(("busy", "0"), ("quiet", "0"), ("third", "0")),
        *(("busy", "1"), ("third", "1"), ("busy", "2")),
    ]


def test_put_back__unfinished_job__is_behind_the_others_of_its_app_and_of_others() -> None:
    queue = JobQueue()
    busy, quiet = jobs("busy", 2), jobs("quiet", 1)
    queue.update([*busy, *quiet], 0)
    first = queue.next()
    assert first == busy[0]
    queue.put_back(first)
    assert drain(queue) == [quiet[0], busy[1], busy[0]]


def test_update__again_and_again__keeps_whose_turn_it_is() -> None:
    """An app that gets new jobs all the time doesn't come before those that wait."""
    queue = JobQueue()
    queue.update([*jobs("a", 1), *jobs("b", 1)], 0)
    assert queue.next() == Job("a", 0, "0")
    queue.update([*jobs("a", 5), *jobs("b", 1)], 1)
    assert queue.next() == Job("b", 0, "0")


def test_update__jobs_that_are_done__leave() -> None:
    queue = JobQueue()
    queue.update(jobs("a", 3), 0)
    queue.fail(jobs("a", 1)[0], 0)
    queue.update([], 1)
    assert drain(queue) == []
    assert (queue._waiting, queue._failures, queue.apps) == ({}, {}, 0)


def test_fail__in_a_row__waits_longer_each_time_and_not_for_ever() -> None:
    queue = JobQueue()
    (job,) = jobs("a", 1)
    pauses = [queue.fail(job, 0) for _ in range(2000)]
    assert pauses[:5] == [1, 2, 4, 8, 16]
    assert max(pauses) == LONGEST_RETRY_SECONDS
    queue.update([job], LONGEST_RETRY_SECONDS - 1)
    assert queue.next() is None
    queue.update([job], LONGEST_RETRY_SECONDS)
    assert queue.next() == job
    queue.put_back(job)
    assert queue.fail(job, 0) == 1  # it worked in between


def test_wait__job_of_another_process__leaves_the_others_their_turns() -> None:
    queue = JobQueue()
    first, second = jobs("a", 2)
    queue.update([first, second], 0)
    assert queue.next() == first
    queue.wait(first, 5)
    queue.update([first, second], 1)
    assert drain(queue) == [second]
    queue.update([first, second], 5)
    assert drain(queue) == [first, second]
