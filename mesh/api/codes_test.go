package api_test

import (
	"net/http"
	"testing"

	"guywire/mesh/api"
	"guywire/store"
)

// A refusal of the store crosses the API with its own code, status and exit code.
func TestStoreCodesAreKnown(t *testing.T) {
	for _, code := range []string{
		store.CodeTokenUnknown, store.CodeTokenUsed, store.CodeTokenExpired, store.CodeTokenProof, store.CodeNameTaken,
		store.CodeNameInvalid, store.CodeIdentityTaken, store.CodeRevoked, store.CodePoolEmpty, store.CodePrefixTaken,
		store.CodePrefixRefused, store.CodeForbidden, store.CodeNotFound, store.CodeInvalid, store.CodeInitialised,
		store.CodePoolRefused, store.CodeLastVoter, store.CodeTopologyRefused, store.CodeVersion, store.CodeUnsigned,
		store.CodeStale, store.CodeLastOperator, store.CodeStaleBoot, store.CodeAddressTaken,
	} {
		e := api.Errorf(api.Code(code), "", "x")
		if e.Status() == http.StatusInternalServerError || api.ExitCode(e) == api.ExitUnexpected {
			t.Errorf("the API does not know the store's %q", code)
		}
	}
}
