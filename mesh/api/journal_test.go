package api

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// A reader gets each step once and in order, whether it came early or late,
// and the memory is bounded.
func TestJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const total = maxJoinSteps + 100
		j, failed := newJournal(), errors.New("failed")
		read := func(since uint64) (got []uint64, err error) {
			err = j.follow(t.Context(), since, func(s JoinStep) error {
				got = append(got, s.Index)
				return nil
			})
			return got, err
		}
		early := make(chan []uint64, 1)
		go func() {
			got, err := read(0)
			if !errors.Is(err, failed) {
				t.Errorf("ended with %v", err)
			}
			early <- got
		}()
		for range total {
			j.add(JoinStep{})
			synctest.Wait()
		}
		if !j.running() {
			t.Error("ended too early")
		}
		j.finish(failed)
		for i, index := range <-early {
			if index != uint64(i+1) {
				t.Fatalf("step %d has index %d", i, index)
			}
		}
		late, _ := read(0)
		if len(late) != maxJoinSteps || late[0] != total-maxJoinSteps+1 || late[len(late)-1] != total {
			t.Errorf("late: %d steps from %d", len(late), late[0])
		}
		for since, want := range map[uint64]int{total - 1: 1, total: 0, total + 5: 0, 3: maxJoinSteps} {
			if got, _ := read(since); len(got) != want {
				t.Errorf("since %d: %d steps, want %d", since, len(got), want)
			}
		}
	})
}

// A reader that leaves is let go.
func TestJournalReaderLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		ctx, leave := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() { left <- j.follow(ctx, 0, func(JoinStep) error { return nil }) }()
		synctest.Wait()
		leave()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}
