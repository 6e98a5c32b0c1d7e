package store

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"

	"guywire/mesh"
)

// Answers remember the signed requests of the last Window entries, oldest
// first, so that one whose answer was lost can be asked again and is not done
// twice. The window is counted in entries: every replica forgets alike.
type Answers []answer

type answer struct {
	key   answerKey
	index uint64      // of the entry that decided it
	node  mesh.NodeID // in the result; zero: none
	code  byte        // index in codes
}

// An answerKey is of the author, too, so that nobody can take the request id
// of somebody else.
type answerKey [16]byte

func (c Command) answerKey() answerKey {
	sum := sha256.Sum256(append(c.Author[:], c.Request[:]...))
	return answerKey(sum[:])
}

// codes are those of refusals, in the order of their numbers in the encoding:
// new ones go to the end.
var codes = []string{
	"", CodeTokenUnknown, CodeTokenUsed, CodeTokenExpired, CodeTokenProof, CodeNameTaken, CodeNameInvalid,
	CodeIdentityTaken, CodeRevoked, CodePoolEmpty, CodePrefixTaken, CodePrefixRefused, CodeForbidden, CodeNotFound,
	CodeInvalid, CodeInitialised, CodePoolRefused, CodeLastVoter, CodeTopologyRefused, CodeVersion, CodeUnsigned,
	CodeStale, CodeLastOperator, CodeStaleBoot, CodeAddressTaken,
}

func (a Answers) find(key answerKey) (answer, bool) {
	i := slices.IndexFunc(a, func(x answer) bool { return x.key == key })
	if i < 0 {
		return answer{}, false
	}
	return a[i], true
}

// at leaves out what is older than the window of an index.
func (a Answers) at(index uint64) Answers {
	old := 0
	for old < len(a) && a[old].index+Window < index {
		old++
	}
	if old == len(a) {
		return nil
	}
	return a[old:]
}

// result is what the first request got.
func (s *State) result(a answer) Result {
	r := Result{Index: a.index}
	if a.code != 0 {
		r.Refused = refuse(codes[a.code], "this request was refused before (%s); ask anew to learn why", codes[a.code])
		return r
	}
	if n, live := s.Nodes[a.node]; live {
		r.Node = &n
	} else if t, gone := s.Removed[a.node]; gone {
		r.Node = t.node(a.node)
	}
	return r
}

// remember keeps how a request was decided.
func (s *State) remember(key answerKey, r Result) {
	a := answer{key: key, index: s.Index}
	if r.Node != nil {
		a.node = r.Node.ID
	}
	if r.Refused != nil {
		a.code = byte(slices.Index(codes, r.Refused.Code))
	}
	s.Answered = append(slices.Clip(s.Answered), a)
}

const answerSize = 16 + 8 + 8 + 1

// MarshalJSON implements json.Marshaler with one base64 text: thousands of
// answers are a good part of a state.
func (a Answers) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, len(a)*answerSize)
	for _, x := range a {
		b = append(b, x.key[:]...)
		b = binary.BigEndian.AppendUint64(b, x.index)
		b = append(append(b, x.node[:]...), x.code)
	}
	return json.Marshal(b)
}

// UnmarshalJSON implements json.Unmarshaler.
func (a *Answers) UnmarshalJSON(text []byte) error {
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b)%answerSize != 0 {
		return errors.New("the answered requests are malformed")
	}
	*a = nil
	for ; len(b) > 0; b = b[answerSize:] {
		x := answer{key: answerKey(b[:16]), index: binary.BigEndian.Uint64(b[16:]), node: mesh.NodeID(b[24:32]), code: b[32]}
		if int(x.code) >= len(codes) {
			return errors.New("an answered request has an unknown code")
		}
		*a = append(*a, x)
	}
	return nil
}

// check reports what Apply would not have kept in a state at index.
func (a Answers) check(index uint64) error {
	for i, x := range a {
		if x.index > index || x.index+Window < index || i > 0 && x.index <= a[i-1].index {
			return errors.New("its answered requests are not in order")
		}
	}
	return nil
}
