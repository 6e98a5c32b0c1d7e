package invite

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"reflect"
	"testing"

	"guywire/mesh"
)

func testAnswer() Answer {
	return Answer{
		Mesh: mesh.MeshID{1, 2, 3}, Transcript: sha256.Sum256([]byte("transcript")),
		Certificate: []byte("certificate"), State: []byte("state"),
	}
}

func TestAnswerRoundTrip(t *testing.T) {
	a := testAnswer()
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeAnswer(b); err != nil || !reflect.DeepEqual(got, a) {
		t.Errorf("%+v %v", got, err)
	}
	whole := len(b) - len(a.State)
	for n := range whole + 1 { // without any state, too
		if _, err := DecodeAnswer(b[:n]); !errors.Is(err, ErrAnswer) {
			t.Errorf("%d of %d bytes: %v", n, len(b), err)
		}
	}
	// A byte that moves from the certificate to the state makes another answer.
	moved := a
	moved.Certificate, moved.State = a.Certificate[:len(a.Certificate)-1], append(bytes.Clone(a.Certificate[len(a.Certificate)-1:]), a.State...)
	if other, err := moved.Encode(); err != nil || bytes.Equal(other, b) {
		t.Errorf("two answers, one encoding: %v", err)
	}
	for name, bad := range map[string]Answer{
		"no certificate":   {State: a.State},
		"no state":         {Certificate: a.Certificate},
		"huge certificate": {Certificate: make([]byte, MaxCertificate+1), State: a.State},
	} {
		if _, err := bad.Encode(); !errors.Is(err, ErrAnswer) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	b, _ := testAnswer().Encode()
	f.Add(b)
	f.Add(b[:20])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		a, err := DecodeAnswer(in)
		if err != nil {
			if !errors.Is(err, ErrAnswer) {
				t.Fatal(err)
			}
			return
		}
		out, err := a.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(in, out) {
			t.Fatalf("two encodings of one answer:\n%x\n%x", in, out)
		}
	})
}
