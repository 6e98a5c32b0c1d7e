package truth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"guywire/integration/lab"
	"guywire/mesh/api"
)

// revokeHere revokes a node where the log cannot have it, and says when.
func revokeHere(cmd *cobra.Command, node string) error {
	c := api.Dial(socket)
	defer c.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
	defer cancel()
	at := monotonic()
	if _, err := c.Revoke(ctx, node); err == nil {
		return errors.New("it is in the log")
	}
	return json.NewEncoder(cmd.OutOrStdout()).Encode(at)
}

// TestB10RevokedInAMinority: where no majority of the voters is left, an
// operator's word cuts a node off, and comes into the log when one is back.
func TestB10RevokedInAMinority(t *testing.T) {
	w := build(t, lab.Options{Path: []string{bin}})
	w.enter("four")
	talk := func(from, to string) string {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		out, err := w.inside(ctx, from+"-host", "", "ping", "--count", "2", "--timeout", "500ms", "--target", to+"="+w.host(to).String())
		if err == nil && strings.Contains(out, `"reached": true`) {
			return ""
		}
		return fmt.Sprintf("%s does not reach %s: %v", from, to, err)
	}
	rest := func(d time.Duration) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		<-timer.C
	}
	w.until("four talks to all", func() string { return talk("four", "one") + talk("four", "two") + talk("four", "three") })
	if err := w.lab.Partition(t.Context(), []string{"west"}, []string{"east"}); err != nil {
		t.Fatal(err)
	}
	w.until("three is alone with four", func() string {
		if talk("three", "one") == "" {
			return "it reaches one"
		}
		return talk("four", "three")
	})
	s := w.flows("four", "three")
	rest(time.Second)
	var at time.Duration
	w.decode(&at, w.must("three", "", "revoke", "--here", "four"))
	rest(revoked + time.Second)
	received, last := s.stop()
	if received[0] < packets/4 {
		t.Errorf("three got only %d packets before", received[0])
	}
	if last[0] > at+revoked {
		t.Errorf("three took a packet of the banned node %s after", last[0]-at)
	}
	t.Logf("three took the last packet %s after the word, of %d", (last[0] - at).Round(time.Millisecond), received[0])
	var st api.Status
	if err := w.ask("three", "status", &st); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(st.Health.Findings, func(f api.Finding) bool {
		return strings.HasPrefix(f.Sentence, "four is banned by word of three") && strings.HasSuffix(f.Sentence, "not yet in the log")
	}) {
		t.Errorf("nothing is said of it: %+v", st.Health)
	}

	s = w.flows("four", "one", "two", "three")
	rest(time.Second)
	if err := w.lab.Heal(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	for _, site := range w.sites {
		w.until(site+" has it from the log", func() string {
			if strings.Contains(w.must(site, "", "ask", "nodes"), `"four"`) {
				return "four is listed"
			}
			return ""
		})
	}
	received, _ = s.stop()
	if received[2] > 0 {
		t.Errorf("three took %d packets of the node that it had banned", received[2])
	}
}
